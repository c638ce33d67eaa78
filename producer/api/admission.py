"""Who may come in: tokens, teams, and how many requests a team may send.

All of it is known from the headers, so it is decided before a byte of the body is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPBearer
from limits import RateLimitItem
from limits.aio.strategies import RateLimiter

from jobs.teams import OPEN_TEAM, Priority
from producer.api.access.keys import Key, KeyRing
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of
from producer.api.wire.reading import StrictRoute

_bearer = HTTPBearer(auto_error=False, scheme_name="token")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request, as far as it matters. priority: the highest that runs may have."""

    team: str
    priority: Priority = "normal"


@dataclass(frozen=True)
class Access:
    """The keys of a deployment, and the pace that each team has to keep.

    public_host: by which callers know the facade beside its own address; empty if there is none.
    """

    keys: KeyRing
    limiter: RateLimiter
    rate: RateLimitItem
    public_host: str = ""

    async def close(self) -> None:
        """Close the connections that the pace is kept with."""
        counts: Any = self.limiter.storage  # the library's own types do not tell of it
        await counts.bridge.storage.aclose(close_connection_pool=True)  # made for it, not by it

    @property
    def is_open(self) -> bool:
        """Whether there is no key and never was one, so that everybody may come in."""
        return not self.keys.all() and not self.keys.guarded

    async def admit(self, token: str | None, team: str | None, needs_key: bool) -> Caller:
        """The caller that a token stands for.

        needs_key: also while there is no key at all, when everybody may come in.

        Raises:
            ApiError: 401, 403 or 429.
        """
        if self.is_open and not needs_key:
            # Clients that must have a token send one all the same.
            return await self.pace(OPEN_TEAM, "high")
        key = self._key(token)
        team = team or key.teams[0]
        if team not in key.teams:
            raise ApiError(403, "wrong_team", "this token does not belong to that team")
        return await self.pace(team, key.priority)

    def priority(self, token: str | None) -> Priority:
        """The highest that a token's runs may have. Raises: as teams."""
        return "high" if self.is_open else self._key(token).priority

    def teams(self, token: str | None) -> tuple[str, ...]:
        """Whose work a token shows; without any keys a token is not needed.

        Raises:
            ApiError: 401.
        """
        return (OPEN_TEAM,) if self.is_open else self._key(token).teams

    def _key(self, token: str | None) -> Key:
        if token is None:
            raise ApiError(401, "no_token", "send a token: Authorization: Bearer …")
        key = self.keys.find(token)
        if key is None:
            raise ApiError(
                401, "bad_token", "this token is not known; imagemill keys create makes one"
            )
        return key

    async def pace(self, team: str, priority: Priority = "normal") -> Caller:
        """Count a request of a team. Raises ApiError 429."""
        if not await self.limiter.hit(self.rate, team):
            stats = await self.limiter.get_window_stats(self.rate, team)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            raise ApiError(429, "rate_limited", f"more than {self.rate}; wait {wait} s", "", wait)
        return Caller(team, priority)


class GuardedRoute(StrictRoute):
    """A route that nobody passes who is not admitted, whatever its endpoint asks for."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The strict handler, behind the admission."""
        handle = super().get_route_handler()
        needs_key = _uses(self.dependant, _with_key)

        async def guarded(request: Request) -> Response:
            credentials, access = await _bearer(request), part_of(request, Access)
            if access.is_open:
                check_site(request, access.public_host)
            request.state.caller = await access.admit(
                credentials.credentials if credentials else None,
                request.headers.get("x-friendli-team"),
                needs_key,
            )
            return await handle(request)

        return guarded


def check_site(request: Request, public_host: str) -> None:
    """Refuse what a page of another site has a browser of this machine send.

    Without keys all that protects a facade on loopback is its address, and a stranger's page can
    reach that: by a form, or by a name of its own that leads here (DNS rebinding).
    public_host: of the proxy before it, which is as good as its own.

    Raises:
        ApiError: 403.
    """
    server = request.scope.get("server")
    if server is None or not is_loopback(server[0]):
        return
    host = urlsplit(f"//{request.headers.get('host', '')}")
    known = {public_host} - {""}
    if not is_loopback(host.hostname or "") and host.netloc not in known:
        raise ApiError(403, "wrong_host", f"{(host.hostname or '')[:256]!r} is not this machine")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc not in {host.netloc, *known}:
        raise ApiError(403, "wrong_origin", "pages of other sites may not call without a key")


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _uses(dependant: Dependant, dependency: Callable[..., object]) -> bool:
    return dependant.call is dependency or any(
        _uses(one, dependency) for one in dependant.dependencies
    )


async def _admitted(
    request: Request,
    # For the schema only: GuardedRoute has read both.
    _token: Annotated[object, Depends(_bearer)],
    _team: Annotated[
        str | None,
        Header(
            alias="X-Friendli-Team",
            description="ID of team to run requests as (optional parameter).",
        ),
    ] = None,
) -> Caller:
    return cast("Caller", request.state.caller)


async def _with_key(caller: Annotated[Caller, Depends(_admitted)]) -> Caller:
    return caller


Admitted = Annotated[Caller, Depends(_admitted)]
WithKey = Annotated[Caller, Depends(_with_key)]
