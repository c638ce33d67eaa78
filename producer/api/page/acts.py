"""What may be done to a run: another priority, pause, resume, cancel, retry; after a question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from anyio import CapacityLimiter
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from jobs.errors import UsageError
from jobs.output.dataset import read_summary
from jobs.output.storage import open_storage
from jobs.teams import PRIORITIES
from producer.api.page.board import Board
from producer.api.page.parameters import RunId, UsedBoard, small_form
from producer.api.page.visits import PageRoute, UsedPages, Visiting
from producer.api.wire.errors import ApiError
from producer.api.wire.threads import in_thread
from producer.control import stopping
from producer.control.installation import Installation
from producer.control.status import Status

Act = Literal["pause", "resume", "cancel", "retry"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/runs/{run_id}/priority")
async def ask_priority(
    request: Request, run_id: RunId, visitor: Visiting, pages: UsedPages, board: UsedBoard
) -> Response:
    """Which priority it is to have."""
    standing = await board.run(run_id, visitor)
    ranks = PRIORITIES[: PRIORITIES.index(visitor.priority) + 1]
    return pages.show(request, "priority.html", run=standing, ranks=ranks)


@router.post("/runs/{run_id}/priority")
async def prioritize(
    request: Request, run_id: RunId, visitor: Visiting, board: UsedBoard
) -> Response:
    """Give a run another priority, as high as the visitor's key may."""
    await board.run(run_id, visitor)  # it must be theirs
    asked = (await small_form(request)).get("priority", "")
    if asked not in PRIORITIES:
        raise ApiError(422, "wrong_priority", f"a priority is one of {', '.join(PRIORITIES)}")
    wanted = PRIORITIES[PRIORITIES.index(asked)]
    if PRIORITIES.index(wanted) > PRIORITIES.index(visitor.priority):
        message = f"this token's runs have the priority {visitor.priority} at most"
        raise ApiError(403, "wrong_priority", message)
    return await _changed(board, lambda: stopping.prioritize(run_id, wanted, board.known))


@router.get("/runs/{run_id}/{act}")
async def confirm(
    request: Request,
    run_id: RunId,
    act: Act,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
) -> Response:
    """Whether it is meant."""
    standing = await board.run(run_id, visitor)
    summary = None
    if act == "retry":
        summary = await in_thread(read_summary, open_storage(standing.progress.out))
    return pages.show(request, "confirm.html", run=standing, act=act, summary=summary)


@router.post("/runs/{run_id}/{act}")
async def change(run_id: RunId, act: Act, visitor: Visiting, board: UsedBoard) -> Response:
    """Pause a run, have it go on, end it, or render again what failed."""
    standing = await board.run(run_id, visitor)  # it must be theirs
    if act == "retry" and standing.batch:  # its output file is written already
        raise ApiError(409, "not_possible", "requests of a batch are tried again by a new batch")
    acts: dict[Act, Callable[[str, Installation], Status]] = {
        "pause": stopping.pause,
        "resume": stopping.resume,
        "cancel": stopping.cancel,
        "retry": stopping.retry,
    }
    planning = board.planning if act == "retry" else None
    return await _changed(board, lambda: acts[act](run_id, board.known), planning)


async def _changed(
    board: Board, change: Callable[[], Status], threads: CapacityLimiter | None = None
) -> Response:
    """To the page of the run, which is changed by then. Raises ApiError 409."""
    try:
        found = await in_thread(change, threads=threads)
    except UsageError as error:  # it has finished meanwhile, or its team has too little left
        raise ApiError(409, "not_possible", error.message) from error
    finally:
        board.forget()
    return RedirectResponse(f"../{found.run_id}", 303)
