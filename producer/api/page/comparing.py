"""Two pictures side by side: of one run, or the same place in two of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest

from jobs.ids import RUN_ID
from jobs.output.records import Row
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.api.page.board import Standing
from producer.api.page.gallery import Gallery
from producer.api.page.parameters import RowNumber, RunId, UsedBoard, UsedGallery
from producer.api.page.visits import PageRoute, UsedPages, Visiting

# What is not shown as a difference: of the picture's file, not of what made it.
UNTOLD = {"custom_id", "index", "job_id", "file_name", "sha256", "batch_started", "created_at"}

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. record: None where the run has none at that row."""

    run: Standing
    row: int
    request: Request | None
    record: Row | None

    @property
    def file_name(self) -> str:
        """Of its picture, "" without one."""
        done = self.record is not None and self.record["status"] == "done"
        return self.record["file_name"] if done and self.record else ""


@router.get("/runs/{run_id}/rows/{row}/beside")
async def beside(
    request: HttpRequest,
    run_id: RunId,
    row: RowNumber,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    gallery: UsedGallery,
    run: Annotated[str, Query(pattern=f"^{RUN_ID.pattern}$")],
    number: Annotated[int, Query(ge=1, le=2**53)],
) -> Response:
    """A picture beside another. run: whose the other is; number: its row's, from 1."""
    places = [(await board.run(run_id, visitor), row), (await board.run(run, visitor), number - 1)]

    def read() -> list[Side]:
        return [look(gallery, standing, at) for standing, at in places]

    one, other = await gallery.read(read)
    most = [side.run.progress.requests for side in (one, other)]
    return pages.show(
        request,
        "beside.html",
        one=one,
        other=other,
        before=min(one.row, other.row) > 0,
        after=one.row + 1 < most[0] and other.row + 1 < most[1],
        differences=differences(one.record, other.record),
    )


def look(gallery: Gallery, run: Standing, row: int) -> Side:
    """One side. Raises InvalidRequest, code not_found, for a row that the run cannot have."""
    album = gallery.open(open_storage(run.progress.out), run.progress.run_id)
    found, record = album.find(row)
    return Side(run, row, found, record)


def differences(one: Row | None, other: Row | None) -> list[tuple[str, Any, Any]]:
    """(column, what one says, what the other) of every column in which two records differ."""
    if one is None or other is None:
        return []
    names = [name for name in {**one, **other} if name not in UNTOLD]
    return [
        (name, one.get(name, "–"), other.get(name, "–"))
        for name in names
        if one.get(name) != other.get(name) and not name.startswith("seconds_")
    ]
