"""The first page: the runs, and the workers beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from jobs.broker.progress import State
from producer.api.page.board import Filter, costs
from producer.api.page.parameters import UsedBoard, UsedRoster
from producer.api.page.visits import PageRoute, UsedPages, Visiting

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
async def overview(
    request: Request,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    roster: UsedRoster,
    q: Annotated[str, Query(max_length=256)] = "",
    state: Annotated[State | Literal[""], Query()] = "",
) -> Response:
    """The runs that are asked for by a text and a state."""
    every = await board.runs(visitor)
    wanted = Filter(q.strip(), state)
    return pages.show(
        request,
        "board.html",
        runs=[run for run in every if wanted.takes(run)],
        total=len(every),
        wanted=wanted,
        fleet=await roster.all(),
        names={run.progress.run_id: run.name for run in every},
        costs=costs(every),
    )
