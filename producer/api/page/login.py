"""Whoever wants to look shows a token once; a cookie keeps it."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from producer.api.admission import Access
from producer.api.files.downloads import UsedDownloads
from producer.api.page.parameters import small_form
from producer.api.page.visits import COOKIE, COOKIE_SECONDS, MOST_TO, OpenRoute, UsedPages
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of

_PAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*(\?[!-~]*)?|\?[!-~]*")

router = APIRouter(include_in_schema=False, route_class=OpenRoute)


@router.get("/login")
async def ask(
    request: Request, pages: UsedPages, to: Annotated[str, Query(max_length=MOST_TO)] = ""
) -> Response:
    """The form that takes a token. to: the page that was asked for, as seen from /."""
    return pages.show(request, "login.html", wrong=False, to=to)


@router.post("/login")
async def login(request: Request, pages: UsedPages, downloads: UsedDownloads) -> Response:
    """Keep a token that is known in a cookie, and lead to the page that was asked for."""
    form = await small_form(request)
    token, to = form.get("token", ""), form.get("to", "")
    access = part_of(request, Access)
    try:
        access.teams(token)
    except ApiError:
        return pages.show(request, "login.html", 401, wrong=True, to=to)
    response = RedirectResponse(f"./{to}" if is_page(to) else "./", 303)
    secure = "https" in (request.url.scheme, urlsplit(downloads.public_url or "").scheme)
    response.set_cookie(
        COOKIE, token, COOKIE_SECONDS, secure=secure, httponly=True, samesite="strict"
    )
    return response


def is_page(to: str) -> bool:
    """Whether it is an address below /, and of no other site, however it is read."""
    return _PAGE.fullmatch(to) is not None and ".." not in to.partition("?")[0]


@router.post("/logout")
async def logout() -> Response:
    """Forget the token."""
    response = RedirectResponse("login", 303)
    response.delete_cookie(COOKIE)
    return response
