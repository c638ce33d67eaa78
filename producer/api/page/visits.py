"""Who looks at the page: a token in a cookie instead of a header, and answers for people."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, cast
from urllib.parse import urlencode, urlsplit

from fastapi import Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment
from starlette.exceptions import HTTPException

from jobs.teams import Priority
from producer.api.admission import Access, Caller, check_site
from producer.api.wire.errors import ApiError, answer, as_answer
from producer.api.wire.parts import part_of
from producer.api.wire.reading import StrictRoute
from producer.look.writing import make_environment

COOKIE = "imagemill_token"
COOKIE_SECONDS = 30 * 24 * 3600
MOST_TO = 1024  # characters of a page's address that the login leads to: a small form has room

# Nothing from elsewhere, nothing inline; and no other site may frame it or send its forms.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that browsers send "Origin: null", and forms would be refused.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever looks at the page. teams: whose runs are shown; the first is whose calls are made.

    everybody: there are no keys, so that all runs are shown; priority: the highest that they may
    give a run.
    """

    teams: tuple[str, ...]
    everybody: bool
    priority: Priority = "normal"

    @property
    def caller(self) -> Caller:
        """The same for the endpoints' own parts."""
        return Caller(self.teams[0])

    def sees(self, team: str) -> bool:
        """Whether the runs of a team are shown."""
        return self.everybody or team in self.teams


@dataclass(frozen=True)
class Pages:
    """Writes answers of the templates."""

    templates: Environment

    def show(self, request: Request, template: str, status: int = 200, **parts: Any) -> Response:
        """A page; 304 without it if the browser has this very one.

        Its links are relative: it may lie below a proxy's path.
        """
        visitor = getattr(request.state, "visitor", None)
        root = _root(request)
        text = self.templates.get_template(template).render(root=root, visitor=visitor, **parts)
        tag = f'"{sha256(text.encode()).hexdigest()[:32]}"'
        headers = {"Cache-Control": "private, no-cache", "ETag": tag, "Vary": "Accept-Encoding"}
        if status == 200 and request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        body = text.encode()
        # Nothing in it is secret from whoever may ask for it, which other sites cannot.
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"], body = "gzip", gzip.compress(body, 5, mtime=0)
        return HTMLResponse(body, status, headers)


def make_pages() -> Pages:
    return Pages(make_environment("producer.api.page"))


class PageRoute(StrictRoute):
    """A route of the page: admits by cookie, refuses forms of other sites, answers with pages."""

    admits = True  # whether a visitor is needed
    counts = True  # whether it counts in the team's pace

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The strict handler behind the admission, its errors as pages."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                _check_form(request)
                if self.admits:
                    request.state.visitor = await _admit(request, self.counts)
                response = await handle(request)
            except Exception as error:
                response = _answer(request, error)
            response.headers.update(HEADERS)
            return response

        return guarded


class OpenRoute(PageRoute):
    """One that whoever is not logged in may pass, too."""

    admits = False


class PictureRoute(PageRoute):
    """One of many that a page asks for at once."""

    counts = False


async def _admit(request: Request, counts: bool) -> Visitor:
    """Raises ApiError 401, 403 or 429."""
    access = part_of(request, Access)
    if access.is_open:
        check_site(request, access.public_host)
    token = request.cookies.get(COOKIE)
    teams, priority = access.teams(token), access.priority(token)
    if counts:
        await access.pace(teams[0])
    return Visitor(teams, access.is_open, priority)


def _check_form(request: Request) -> None:
    """Raises ApiError 403 for a form that does not come from this very page.

    The cookie is SameSite as well; a facade without keys has only this.
    """
    if request.method in ("GET", "HEAD"):
        return
    own = {request.headers.get("host", ""), part_of(request, Access).public_host} - {""}
    origin = request.headers.get("origin", "")
    if urlsplit(origin).netloc not in own:
        raise ApiError(403, "wrong_origin", "forms of other sites are not taken")


def _answer(request: Request, error: Exception) -> Response:
    problem = as_answer(error, openai=False)
    if problem.code in ("no_token", "bad_token"):
        response: Response = RedirectResponse(f"{_root(request)}login{_asked(request)}", 303)
        response.delete_cookie(COOKIE)
        return response
    pages = part_of(request, Pages)
    response = pages.show(request, "problem.html", problem.status, problem=problem)
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


def _root(request: Request) -> str:
    """Where / is from a page."""
    return "../" * (request.scope["path"].count("/") - 1) or "./"


def _asked(request: Request) -> str:
    """A query that has the login lead to this page; "" for /, forms, what polls, and long ones."""
    path, query = request.scope["path"].removeprefix("/"), request.url.query
    to = f"{path}?{query}" if query else path
    is_page = request.method == "GET" and "hx-request" not in request.headers
    return "?" + urlencode({"to": to}) if is_page and 0 < len(to) <= MOST_TO else ""


async def answer_nothing(request: Request, error: Exception) -> Response:
    """What is at an address that nothing has: a page for who reads HTML, else the API's answer."""
    missing = isinstance(error, HTTPException) and error.status_code == 404
    if not missing or "text/html" not in request.headers.get("accept", ""):
        return await answer(request, error)
    path = request.scope["path"]
    problem = ApiError(404, "not_found", f"There is nothing at {path[:256]}.")
    response = part_of(request, Pages).show(request, "problem.html", 404, problem=problem)
    response.headers.update(HEADERS)
    return response


async def _visitor(request: Request) -> Visitor:
    return cast("Visitor", request.state.visitor)


async def _pages(request: Request) -> Pages:
    return part_of(request, Pages)


Visiting = Annotated[Visitor, Depends(_visitor)]
UsedPages = Annotated[Pages, Depends(_pages)]
