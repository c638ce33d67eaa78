"""How endpoints come to what they work with: `application` makes each part once, by its class."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request

P = TypeVar("P")


def provide(app: FastAPI, *parts: object) -> None:
    """Have the endpoints of an application find these."""
    app.state.parts = {type(part): part for part in parts}


def provided(kind: type[Any]) -> Any:
    """The dependency on a part, for Annotated: `UsedCalls = Annotated[Calls, provided(Calls)]`."""

    async def find(request: Request) -> object:  # async: FastAPI would call it in a thread
        return part_of(request, kind)

    return Depends(find)


def part_of(request: Request, kind: type[P]) -> P:
    """The part that an application was given."""
    return cast("P", request.app.state.parts[kind])
