"""Whoever wants to look shows a token once; a cookie keeps it."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from producer.api.admission import Access
from producer.api.files.downloads import UsedDownloads
from producer.api.page.parameters import small_form
from producer.api.page.visits import COOKIE, COOKIE_SECONDS, OpenRoute, UsedPages
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of

router = APIRouter(include_in_schema=False, route_class=OpenRoute)


@router.get("/login")
async def ask(request: Request, pages: UsedPages) -> Response:
    """The form that takes a token."""
    return pages.show(request, "login.html", wrong=False)


@router.post("/login")
async def login(request: Request, pages: UsedPages, downloads: UsedDownloads) -> Response:
    """Keep a token that is known in a cookie."""
    token = (await small_form(request)).get("token", "")
    access = part_of(request, Access)
    try:
        access.teams(token)
    except ApiError:
        return pages.show(request, "login.html", 401, wrong=True)
    response = RedirectResponse("./", 303)
    secure = "https" in (request.url.scheme, urlsplit(downloads.public_url or "").scheme)
    response.set_cookie(
        COOKIE, token, COOKIE_SECONDS, secure=secure, httponly=True, samesite="strict"
    )
    return response


@router.post("/logout")
async def logout() -> Response:
    """Forget the token."""
    response = RedirectResponse("login", 303)
    response.delete_cookie(COOKIE)
    return response
