"""One picture's page: its request, its record, and those on either side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from jobs.output.choices import Chooser, Known
from jobs.output.records import Row
from jobs.output.scores import Joiner
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.api.admission import Access
from producer.api.page.gallery import Album, Card, Wanted
from producer.api.page.parameters import RowNumber, RunId, UsedBoard, UsedGallery
from producer.api.page.reproduction import curl, manifest_line
from producer.api.page.visits import PageRoute, UsedPages, Visiting
from producer.api.wire.parts import part_of

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class Entry:
    """One record with its scores, and those on either side, if there are any.

    candidates: number → row of those that were rendered for its image, without others none; choice:
    what became of it among them.
    """

    request: Request
    record: Row
    candidates: Mapping[int, int]
    choice: str
    before: tuple[Card, ...]
    after: tuple[Card, ...]


@router.get("/runs/{run_id}/rows/{row}")
async def row(
    request: HttpRequest,
    run_id: RunId,
    row: RowNumber,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    gallery: UsedGallery,
) -> Response:
    """One record: its picture, its request, and what rendered it."""
    standing = await board.run(run_id, visitor)

    def read() -> Entry:
        album = gallery.open(open_storage(standing.progress.out), run_id)
        wanted, record = album.record(row)
        (record,) = Joiner(album.storage, run_id).join(album.shard(row), [record])
        known = album.candidates(row, wanted.candidate.image) if wanted.candidate else {}
        choice = ""
        if known and standing.progress.state == "finished":
            record, choice = chosen(album, record, [*known.values()])
        candidates = {
            one.candidate.number + 1: number
            for number, (one, there) in known.items()
            if there and one.candidate
        }
        before = album.before(row, Wanted("all"), 1).cards
        after = album.after(row + 1, Wanted("all"), 1).cards
        return Entry(wanted, record, candidates, choice, before, after)

    entry = await gallery.read(read)
    others = [one for one in await board.runs(visitor) if one.progress.run_id != run_id]
    others.sort(key=lambda one: one.progress.requests != standing.progress.requests)
    base, access = str(request.base_url).rstrip("/"), part_of(request, Access)
    return pages.show(
        request,
        "row.html",
        run=standing,
        row=row,
        entry=entry,
        others=others,
        line=manifest_line(entry.request, entry.record["batch_width"]),
        curl=curl(entry.request, base, not access.is_open),
    )


def chosen(album: Album, record: Row, candidates: Sequence[Known]) -> tuple[Row, str]:
    """The record of a candidate of a finished run, as its dataset has it, and what became of it."""
    (choice,) = Chooser(album.storage, album.plan).choose(candidates)
    one = choice.chosen
    if one is None:  # scored anew, or not at all
        return record, ""
    if one.get("code") == "none_passed":
        return record, f"not chosen: {one['message']}"
    if one["job_id"] != record["job_id"]:
        return record, "not chosen"
    return record | {"candidates": one["candidates"]}, "chosen"
