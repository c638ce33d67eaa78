"""A run's page: how far it is, how fast, what failed, its pictures."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from jobs.errors import UsageError
from jobs.ids import COLUMN
from jobs.output import layout
from jobs.output.dataset import Summary, read_summary
from jobs.output.records import Row, read_part
from jobs.output.scores import read_scorings
from jobs.output.storage import open_storage
from producer.api.page.board import Standing
from producer.api.page.gallery import Album, Card, Found, Gallery, Shown, Wanted
from producer.api.page.parameters import (
    Cursor,
    RunId,
    UsedBoard,
    UsedGallery,
    UsedRankings,
    UsedRoster,
    UsedThumbnails,
)
from producer.api.page.ranking import Looking, page_of
from producer.api.page.speed import HEIGHT, WIDTH, Speed, speed_of
from producer.api.page.visits import PageRoute, UsedPages, Visiting
from producer.upkeep.export.selection import MAX_CONDITION

FAILURES = 12
COLUMNS = (
    "prompt", "custom_id", "model", "adapter", "seed", "width", "height", "num_inference_steps",
    "guidance_scale", "bytes", "status", "code", "seconds_render", "created_at", "device_name",
    "worker",
)  # fmt: skip
COLUMN_PATTERN = f"^({COLUMN.pattern})?$"

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@dataclass(frozen=True, slots=True)
class Reading:
    """What storage says of a run. first: no place in it was asked for; summary: None until it has
    finished; failures, invalid: some of the failed requests and of the lines that were left out;
    scores: the columns of scorers in its place; found: None for what has to be looked for; heir:
    the run that has taken its place over, "" for none."""

    album: Album
    found: Found | None
    first: bool
    scores: tuple[str, ...]
    speed: Speed | None
    summary: Summary | None
    failures: tuple[Card, ...]
    more_failures: bool
    invalid: list[Row]
    heir: str

    @property
    def decided(self) -> bool:
        """Whether images were chosen among candidates: the dataset tells which."""
        return self.summary is not None and self.album.plan.chooses

    @property
    def undecided(self) -> bool:
        """Whether its pictures are candidates, some of which are none of its images."""
        return self.summary is None and self.album.plan.chooses

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that one may want to sort by; any other may be named as well."""
        return (*COLUMNS, "candidates") if self.decided else COLUMNS

    @property
    def planned(self) -> list[tuple[str, int]]:
        """How many requests the plan gives each model."""
        found = Counter[str]()
        for shard in self.album.plan.shards:
            for chunk in shard.chunks:
                found[chunk.model] += chunk.stop - chunk.start
        return found.most_common()


def read_run(
    standing: Standing, gallery: Gallery, wanted: Wanted, after: int | None, before: int | None
) -> Reading:
    """All that a run's page shows but what must be sorted. Raises: as Gallery.open."""
    storage, run_id = open_storage(standing.progress.out), standing.progress.run_id
    with ThreadPoolExecutor(2) as beside:  # storage may be far away
        ended, scored = beside.submit(read_summary, storage), beside.submit(read_scorings, storage)
        album = gallery.open(storage, run_id)
    latest = summary = ended.result()
    if summary and (summary.run_id != run_id or summary.state != "finished"):
        summary = None
    found, decided = None, summary is not None and album.plan.chooses
    if wanted.ranked or decided:
        pass
    elif after is not None:
        found = album.after(after, wanted)
    elif before is not None or (standing.live and not wanted.text):
        found = album.before(album.plan.requests if before is None else before, wanted)
    else:
        found = album.after(0, wanted)
    failed = Found((), None, None)
    if decided:
        pass
    elif standing.live:  # its count forgets what failed before it went on
        failed = album.before(album.plan.requests, Wanted("failures"), FAILURES)
    elif standing.progress.failed or standing.progress.state == "cancelled":
        failed = album.after(0, Wanted("failures"), FAILURES)
    invalid = list[Row]()
    if album.plan.invalid:
        invalid = list(islice(read_part(storage, layout.invalid(run_id)), FAILURES))
    return Reading(
        album=album,
        found=found,
        first=after is None and before is None,
        scores=tuple(name for one in scored.result() for name in one.all_columns),
        speed=speed_of(album.plan, album.times),
        summary=summary,
        failures=failed.cards,
        more_failures=(failed.before or failed.after) is not None,
        invalid=invalid,
        heir=latest.run_id if latest and latest.run_id != run_id else "",
    )


@router.get("/runs/{run_id}")
async def run(
    request: Request,
    run_id: RunId,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    gallery: UsedGallery,
    roster: UsedRoster,
    rankings: UsedRankings,
    thumbnails: UsedThumbnails,
    after: Cursor = None,
    before: Cursor = None,
    show: Shown = "pictures",
    q: Annotated[str, Query(max_length=400)] = "",
    model: Annotated[str, Query(max_length=256)] = "",
    where: Annotated[str, Query(max_length=MAX_CONDITION)] = "",
    by: Annotated[str, Query(pattern=COLUMN_PATTERN)] = "",
    order: Literal["rising", "falling"] = "rising",
) -> Response:
    """One run: how far it is, what failed, its pictures.

    after: the first row to show; before: the row to end before; without them the latest pictures
    of a run under way, the first of one that has ended. Of what is sorted, or chosen by a
    condition, they are places in that order.
    """
    standing = await board.run(run_id, visitor)
    wanted = Wanted(show, q.strip(), model, where.strip(), by, order == "falling")
    reading = await gallery.read(lambda: read_run(standing, gallery, wanted, after, before))
    found, looking, problem = reading.found, None, ""

    async def look(wanted: Wanted, after: int | None, before: int | None) -> Found | Looking:
        album = reading.album
        ranking = await rankings.find(album, reading.summary is not None, wanted)
        if isinstance(ranking, Looking):
            return ranking
        return await gallery.read(lambda: page_of(album, ranking, wanted, after, before))

    if reading.decided and standing.progress.failed:
        failed = await look(Wanted("failures"), 0, None)
        if isinstance(failed, Found):
            reading = replace(reading, failures=failed.cards[:FAILURES])
            reading = replace(reading, more_failures=len(failed.cards) > FAILURES)
    if found is None:
        try:
            seen = await look(wanted, after, before)
            found, looking = (None, seen) if isinstance(seen, Looking) else (seen, None)
        except UsageError as error:
            problem = str(error).replace("--where ", "")
    if found:  # the browser asks for a few at a time, and storage may be far away
        shown = [card.file_name for card in found.cards if card.file_name]
        thumbnails.prepare(reading.album.storage, shown)
    fleet = await roster.all()
    served = {model for worker in fleet for model in worker.serves}
    return pages.show(
        request,
        "run.html",
        run=standing,
        reading=reading,
        found=found,
        looking=looking,
        problem=problem,
        drawn=(WIDTH, HEIGHT),
        wanted=wanted,
        unserved=sorted(set(standing.progress.models) - served) if standing.live else [],
    )
