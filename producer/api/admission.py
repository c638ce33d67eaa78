"""Who may come in: tokens, teams, and how many requests a team may send."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from producer.api.access.keys import OPEN_TEAM
from producer.api.facade import Facade, Used
from producer.api.wire.errors import ApiError

_bearer = HTTPBearer(auto_error=False, scheme_name="token")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request, as far as it matters."""

    team: str


Token = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Team = Annotated[
    str | None, Header(description="ID of team to run requests as (optional parameter).")
]


async def admit_key(facade: Used, token: Token, x_friendli_team: Team = None) -> Caller:
    """The caller of an endpoint that always needs a key.

    Raises:
        ApiError: 401, 403 or 429.
    """
    if token is None:
        raise ApiError(401, "no_token", "send a token: Authorization: Bearer …")
    key = facade.keys.find(token.credentials)
    if key is None:
        raise ApiError(401, "bad_token", "this token is not known; imagemill keys create makes one")
    team = x_friendli_team or key.teams[0]
    if team not in key.teams:
        raise ApiError(403, "wrong_team", "this token does not belong to that team")
    return await _within_rate(facade, Caller(team))


async def _within_rate(facade: Facade, caller: Caller) -> Caller:
    if not await facade.limiter.hit(facade.rate, caller.team):
        stats = await facade.limiter.get_window_stats(facade.rate, caller.team)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        raise ApiError(429, "rate_limited", f"more than {facade.rate}; wait {wait} s", "", wait)
    return caller


async def admit(facade: Used, token: Token, x_friendli_team: Team = None) -> Caller:
    """The caller of an endpoint that is open as long as there was no key at all.

    Raises:
        ApiError: 401, 403 or 429.
    """
    if not facade.keys.all() and not facade.keys.guarded:
        # Clients that must have a token send one all the same.
        return await _within_rate(facade, Caller(OPEN_TEAM))
    return await admit_key(facade, token, x_friendli_team)


Admitted = Annotated[Caller, Depends(admit)]
WithKey = Annotated[Caller, Depends(admit_key)]
