"""The page's endpoints: the runs, one run, one picture, and what may be done to a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, FastAPI, Path, Query, Response
from fastapi import Request as HttpRequest
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from jobs.broker.runs import State
from jobs.errors import UsageError
from jobs.ids import COLUMN, RUN_ID
from jobs.output import layout
from jobs.output.dataset import Summary, read_summary
from jobs.output.records import Row, read_part
from jobs.output.scores import read_scorings
from jobs.output.storage import Storage, open_storage
from jobs.requests import Request
from jobs.teams import PRIORITIES
from producer.api.admission import Access
from producer.api.files.downloads import UsedDownloads
from producer.api.page import comparing, trying
from producer.api.page.board import Board, Filter, costs
from producer.api.page.gallery import Album, Card, Found, Gallery, Shown, Wanted
from producer.api.page.pictures import Thumbnails, read_picture
from producer.api.page.ranking import Looking, Rankings, page_of
from producer.api.page.reproduction import curl, manifest_line
from producer.api.page.speed import HEIGHT, WIDTH, Speed, speed_of
from producer.api.page.visits import (
    COOKIE,
    COOKIE_SECONDS,
    OpenRoute,
    PageRoute,
    PictureRoute,
    UsedPages,
    Visiting,
    Visitor,
)
from producer.api.roster import Roster
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of, provided
from producer.api.wire.threads import in_thread
from producer.control import stopping
from producer.control.installation import Installation
from producer.control.status import Status
from producer.upkeep.export.selection import MAX_CONDITION

FILES = "page"
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
STRIP_PICTURES = 10
FAILURES = 12  # on a run's page
LOGIN_BYTES = 4096
COLUMNS = (  # of records, that one may want to sort by; any other may be named as well
    "prompt", "custom_id", "model", "adapter", "seed", "width", "height", "num_inference_steps",
    "guidance_scale", "bytes", "status", "code", "seconds_render", "created_at", "device_name",
    "worker",
)  # fmt: skip
COLUMN_PATTERN = f"^({COLUMN.pattern})?$"

UsedBoard = Annotated[Board, provided(Board)]
UsedGallery = Annotated[Gallery, provided(Gallery)]
UsedRankings = Annotated[Rankings, provided(Rankings)]
UsedThumbnails = Annotated[Thumbnails, provided(Thumbnails)]
UsedRoster = Annotated[Roster, provided(Roster)]

RunId = Annotated[str, Path(pattern=f"^{RUN_ID.pattern}$")]
Shard = Annotated[str, Path(pattern=r"^[0-9]{5,9}$")]
FileName = Annotated[str, Path(pattern=r"^[0-9a-f]{32}\.(jpg|png)$")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Cursor = Annotated[int | None, Query(ge=0, le=2**53)]
Act = Literal["pause", "resume", "cancel"]

router = APIRouter(include_in_schema=False, route_class=PageRoute)
pictures = APIRouter(include_in_schema=False, route_class=PictureRoute)
doors = APIRouter(include_in_schema=False, route_class=OpenRoute)


def add(app: FastAPI) -> None:
    """Serve the page."""
    folder = str(resources.files("producer.look") / "files")
    app.mount(f"/{FILES}", GZipMiddleware(StaticFiles(directory=folder)))
    for one in (pictures, doors, comparing.router, router, trying.router):
        app.include_router(one)


@router.get("/")
async def board(
    request: HttpRequest,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    roster: UsedRoster,
    q: Annotated[str, Query(max_length=256)] = "",
    state: Annotated[State | Literal[""], Query()] = "",
) -> Response:
    """The runs, and the workers beside them."""
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


@doors.get("/login")
async def ask(request: HttpRequest, pages: UsedPages) -> Response:
    """The form that takes a token."""
    return pages.show(request, "login.html", wrong=False)


@doors.post("/login")
async def login(request: HttpRequest, pages: UsedPages, downloads: UsedDownloads) -> Response:
    """Keep a token that is known in a cookie."""
    fields = parse_qs((await _small_body(request)).decode("latin-1"))
    (token,) = fields.get("token", [""])[:1]
    access = part_of(request, Access)
    try:
        access.teams(token)
    except ApiError:
        return pages.show(request, "login.html", 401, wrong=True)
    response = RedirectResponse("./", 303)
    secure = "https" in (request.url.scheme, urlsplit(downloads.public_url or "").scheme)
    response.set_cookie(
        COOKIE, token, COOKIE_SECONDS, secure=secure, httponly=True, samesite="strict"
    )
    return response


async def _small_body(request: HttpRequest) -> bytes:
    """The body of whoever is not admitted yet. Raises ApiError 413 as soon as it has too much."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LOGIN_BYTES:
            raise ApiError(413, "body_too_large", f"more than {LOGIN_BYTES} bytes")
    return body


@doors.post("/logout")
async def logout() -> Response:
    """Forget the token."""
    response = RedirectResponse("login", 303)
    response.delete_cookie(COOKIE)
    return response


@dataclass(frozen=True, slots=True)
class Reading:
    """What storage says of a run. first: no place in it was asked for; summary: None until it has
    finished; failures, invalid: some of the failed requests and of the lines that were left out;
    scores: the columns of its scorers; found: None for what has to be sorted."""

    album: Album
    found: Found | None
    first: bool
    scores: tuple[str, ...]
    speed: Speed | None
    summary: Summary | None
    failures: tuple[Card, ...]
    more_failures: bool
    invalid: list[Row]

    @property
    def planned(self) -> list[tuple[str, int]]:
        """How many requests the plan gives each model."""
        found = Counter[str]()
        for shard in self.album.plan.shards:
            for chunk in shard.chunks:
                found[chunk.model] += chunk.stop - chunk.start
        return found.most_common()


@router.get("/runs/{run_id}")
async def run(
    request: HttpRequest,
    run_id: RunId,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
    gallery: UsedGallery,
    roster: UsedRoster,
    rankings: UsedRankings,
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

    def read() -> Reading:
        storage = open_storage(standing.progress.out)
        album = gallery.open(storage, run_id)
        first = after is None and before is None
        found = None
        if wanted.ranked:
            pass
        elif after is not None:
            found = album.after(after, wanted)
        elif before is not None or (standing.live and not wanted.text):
            found = album.before(album.plan.requests if before is None else before, wanted)
        else:
            found = album.after(0, wanted)
        summary = read_summary(storage)
        if summary and (summary.run_id != run_id or summary.state != "finished"):
            summary = None
        failed = Found((), None, None)
        if standing.live:  # its count forgets what failed before it went on
            failed = album.before(album.plan.requests, Wanted("failures"), FAILURES)
        elif standing.progress.failed or standing.progress.state == "cancelled":
            failed = album.after(0, Wanted("failures"), FAILURES)
        invalid = list[Row]()
        if album.plan.invalid:
            invalid = list(islice(read_part(storage, layout.invalid(run_id)), FAILURES))
        more = (failed.before or failed.after) is not None
        scorings = read_scorings(storage) if summary else []
        scores = tuple(name for one in scorings for name in one.all_columns)
        speed = speed_of(album.plan, album.times)
        return Reading(album, found, first, scores, speed, summary, failed.cards, more, invalid)

    reading = await gallery.read(read)
    found, looking, problem = reading.found, None, ""
    if found is None:
        album = reading.album
        try:
            ranking = await rankings.find(album, reading.summary is not None, wanted)
            if isinstance(ranking, Looking):
                looking = ranking
            else:
                found = await gallery.read(
                    lambda: page_of(album.storage, ranking, wanted, after, before)
                )
        except UsageError as error:
            problem = error.message.removeprefix("--where ")
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
        columns=COLUMNS,
        drawn=(WIDTH, HEIGHT),
        wanted=wanted,
        unserved=sorted(set(standing.progress.models) - served) if standing.live else [],
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, with those on either side, if there are any."""

    request: Request
    record: Row
    before: tuple[Card, ...]
    after: tuple[Card, ...]


@router.get("/runs/{run_id}/rows/{row}")
async def row(
    request: HttpRequest,
    run_id: RunId,
    row: Annotated[int, Path(ge=0, le=2**53)],
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
        before = album.before(row, Wanted("all"), 1).cards
        after = album.after(row + 1, Wanted("all"), 1).cards
        return Entry(wanted, record, before, after)

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


@pictures.get("/runs/{run_id}/pictures/{shard}/{name}")
async def picture(
    run_id: RunId, shard: Shard, name: FileName, visitor: Visiting, board: UsedBoard
) -> Response:
    """An image of the run, as it is."""
    storage = await _storage(board, run_id, visitor)
    data = await in_thread(read_picture, storage, f"images/{shard}/{name}")
    kind = "image/png" if name.endswith(".png") else "image/jpeg"
    return Response(data, media_type=kind, headers=FOREVER)


@pictures.get("/runs/{run_id}/thumbnails/{shard}/{name}")
async def thumbnail(
    run_id: RunId,
    shard: Shard,
    name: FileName,
    visitor: Visiting,
    board: UsedBoard,
    thumbnails: UsedThumbnails,
) -> Response:
    """The same, small."""
    storage = await _storage(board, run_id, visitor)
    data = await thumbnails.get(storage, f"images/{shard}/{name}")
    return Response(data, media_type="image/webp", headers=FOREVER)


@pictures.get("/runs/{run_id}/inputs/{digest}")
async def input_(
    run_id: RunId, digest: Digest, visitor: Visiting, board: UsedBoard, thumbnails: UsedThumbnails
) -> Response:
    """An input image that lies with the run, small."""
    storage = await _storage(board, run_id, visitor)
    data = await thumbnails.get(storage, layout.stored_input(digest))
    return Response(data, media_type="image/webp", headers=FOREVER)


@pictures.get("/runs/{run_id}/latest")
async def latest(
    run_id: RunId,
    visitor: Visiting,
    board: UsedBoard,
    gallery: UsedGallery,
    thumbnails: UsedThumbnails,
) -> Response:
    """The latest pictures of a run, side by side. Whoever links it names how far the run is."""
    storage = await _storage(board, run_id, visitor)

    def read() -> list[str]:
        album = gallery.open(storage, run_id)
        found = album.before(album.plan.requests, Wanted(), STRIP_PICTURES)
        return [card.file_name for card in found.cards]

    paths = await gallery.read(read)
    if not paths:
        raise ApiError(404, "not_found", "there are no pictures yet")
    data = await thumbnails.strip(storage, paths)
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(data, media_type="image/webp", headers=headers)


@router.get("/runs/{run_id}/priority")
async def ask_priority(
    request: HttpRequest, run_id: RunId, visitor: Visiting, pages: UsedPages, board: UsedBoard
) -> Response:
    """Which priority it is to have."""
    standing = await board.run(run_id, visitor)
    ranks = PRIORITIES[: PRIORITIES.index(visitor.priority) + 1]
    return pages.show(request, "priority.html", run=standing, ranks=ranks)


@router.post("/runs/{run_id}/priority")
async def prioritize(
    request: HttpRequest, run_id: RunId, visitor: Visiting, board: UsedBoard
) -> Response:
    """Give a run another priority, as high as the visitor's key may."""
    await board.run(run_id, visitor)  # it must be theirs
    (asked,) = parse_qs((await _small_body(request)).decode("latin-1")).get("priority", [""])[:1]
    if asked not in PRIORITIES:
        raise ApiError(422, "wrong_priority", f"a priority is one of {', '.join(PRIORITIES)}")
    wanted = PRIORITIES[PRIORITIES.index(asked)]
    if PRIORITIES.index(wanted) > PRIORITIES.index(visitor.priority):
        message = f"this token's runs have the priority {visitor.priority} at most"
        raise ApiError(403, "wrong_priority", message)
    return await _changed(board, run_id, lambda: stopping.prioritize(run_id, wanted, board.known))


@router.get("/runs/{run_id}/{act}")
async def confirm(
    request: HttpRequest,
    run_id: RunId,
    act: Act,
    visitor: Visiting,
    pages: UsedPages,
    board: UsedBoard,
) -> Response:
    """Whether it is meant."""
    standing = await board.run(run_id, visitor)
    return pages.show(request, "confirm.html", run=standing, act=act)


@router.post("/runs/{run_id}/{act}")
async def change(run_id: RunId, act: Act, visitor: Visiting, board: UsedBoard) -> Response:
    """Pause a run, have it go on, or end it."""
    await board.run(run_id, visitor)  # it must be theirs
    acts: dict[Act, Callable[[str, Installation], Status]] = {
        "pause": stopping.pause,
        "resume": stopping.resume,
        "cancel": stopping.cancel,
    }
    return await _changed(board, run_id, lambda: acts[act](run_id, board.known))


async def _changed(board: Board, run_id: str, change: Callable[[], Status]) -> Response:
    """Back to a run's page, which is changed by then. Raises ApiError 409."""
    try:
        await in_thread(change)
    except UsageError as error:  # it has finished meanwhile
        raise ApiError(409, "not_possible", error.message) from error
    finally:
        board.forget()
    return RedirectResponse(f"../{run_id}", 303)


async def _storage(board: Board, run_id: str, visitor: Visitor) -> Storage:
    """Where a run's output lies: the broker says it, never a caller."""
    standing = await board.run(run_id, visitor)
    return open_storage(standing.progress.out)
