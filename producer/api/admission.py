"""Who may come in: tokens, teams, and how many requests a team may send.

All of it is known from the headers, so it is decided before a byte of the body is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.security import HTTPBearer
from limits import RateLimitItem
from limits.aio.strategies import RateLimiter

from producer.api.access.keys import OPEN_TEAM, KeyRing
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of
from producer.api.wire.reading import StrictRoute

_bearer = HTTPBearer(auto_error=False, scheme_name="token")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request, as far as it matters."""

    team: str


@dataclass(frozen=True)
class Access:
    """The keys of a deployment, and the pace that each team has to keep."""

    keys: KeyRing
    limiter: RateLimiter
    rate: RateLimitItem

    async def admit(self, token: str | None, team: str | None, needs_key: bool) -> Caller:
        """The caller that a token stands for.

        needs_key: also while there is no key at all, when everybody may come in.

        Raises:
            ApiError: 401, 403 or 429.
        """
        if not needs_key and not self.keys.all() and not self.keys.guarded:
            # Clients that must have a token send one all the same.
            return await self._within_rate(Caller(OPEN_TEAM))
        if token is None:
            raise ApiError(401, "no_token", "send a token: Authorization: Bearer …")
        key = self.keys.find(token)
        if key is None:
            raise ApiError(
                401, "bad_token", "this token is not known; imagemill keys create makes one"
            )
        team = team or key.teams[0]
        if team not in key.teams:
            raise ApiError(403, "wrong_team", "this token does not belong to that team")
        return await self._within_rate(Caller(team))

    async def _within_rate(self, caller: Caller) -> Caller:
        if not await self.limiter.hit(self.rate, caller.team):
            stats = await self.limiter.get_window_stats(self.rate, caller.team)
            wait = max(1, math.ceil(stats.reset_time - time.time()))
            raise ApiError(429, "rate_limited", f"more than {self.rate}; wait {wait} s", "", wait)
        return caller


class GuardedRoute(StrictRoute):
    """A route that nobody passes who is not admitted, whatever its endpoint asks for."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The strict handler, behind the admission."""
        handle = super().get_route_handler()
        needs_key = _uses(self.dependant, _with_key)

        async def guarded(request: Request) -> Response:
            credentials = await _bearer(request)
            request.state.caller = await part_of(request, Access).admit(
                credentials.credentials if credentials else None,
                request.headers.get("x-friendli-team"),
                needs_key,
            )
            return await handle(request)

        return guarded


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
