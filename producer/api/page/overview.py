"""The first page: the runs, and the workers beside them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from jobs.broker.connection import without_password
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
        example=_example(board.known.url if visitor.everybody else ""),
    )


def _example(broker: str) -> str:
    """How a run is submitted. A broker behind a socket is `imagemill up`'s own: none finds it."""
    command = "imagemill submit manifest.jsonl --out"
    if broker.startswith("redis+socket:"):
        return f"{command} out/first --broker {without_password(broker)}"
    return f"{command} s3://bucket/run"
