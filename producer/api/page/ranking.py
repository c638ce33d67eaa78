"""A run's records chosen and sorted by their columns: one look through all of them, whose outcome
is kept as places in the run's files, 20 bytes a record.

A finished run is looked through in its dataset, one under way in its parts, with the columns that
scorers have by now. Which candidates were chosen for images only the dataset tells.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np
import orjson
from cachetools import LRUCache
from numpy.typing import NDArray

from jobs.output import layout
from jobs.output.dataset import place_of_request, place_of_row
from jobs.output.plan import read_shard
from jobs.output.records import OWN_COLUMNS, Row, read_row
from jobs.output.scores import Joiner, read_scorings
from jobs.output.storage import Storage
from producer.api.page.gallery import PAGE_ROWS, Album, Found, Shown, Wanted, card_of
from producer.api.wire.errors import RETRY_SECONDS, ApiError
from producer.api.wire.threads import in_thread
from producer.upkeep.export.selection import Condition, parse_condition, unknown_column

PATIENCE_SECONDS = 1.0  # that a visitor waits before being told how far a look is
FRESH_SECONDS = 30.0  # that what was found of a run under way is shown, though it has more by now
LOOKS = 4  # under way and waiting, of all visitors together
KEPT_BYTES = 64 * 2**20
TEXT_BYTES = 32  # of a text: what it is sorted by
TOLD_ROWS = 4096

# A record: its row, the file that it lies in, and where there.
_PLACE = np.dtype([("row", "u4"), ("file", "u4"), ("start", "u8"), ("length", "u4")])


@dataclass(frozen=True, slots=True)
class Ranking:
    """Records in order. files: what `places` name by number; parts: how many the run had."""

    files: tuple[str, ...]
    places: NDArray[np.void]
    parts: int
    made_at: float

    @property
    def total(self) -> int:
        """How many records there are."""
        return len(self.places)


@dataclass(frozen=True, slots=True)
class Looking:
    """A look that is not at its end; share: how far it is, in [0, 1)."""

    share: float


@dataclass
class _Look:
    share: float = 0.0
    task: asyncio.Task[Ranking] | None = None


_Key = tuple[str, str, Wanted, float]


@dataclass(frozen=True)
class Rankings:
    """Finds rankings, one after the other, and keeps them for a while."""

    _kept: LRUCache[_Key, Ranking] = field(
        default_factory=lambda: LRUCache(KEPT_BYTES, getsizeof=lambda one: one.places.nbytes + 4096)
    )
    _looks: dict[_Key, _Look] = field(default_factory=dict)
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(1))

    async def find(self, album: Album, finished: bool, wanted: Wanted) -> Ranking | Looking:
        """The records that are wanted, or how far the look for them is.

        finished: the run's dataset is that of its output location.

        Raises:
            UsageError: `wanted.where` is no condition, or cannot be asked of a record.
            ApiError: 503 if too many looks wait.
        """
        condition = parse_condition(wanted.where) if wanted.where else None
        stamp = await in_thread(album.storage.modified, layout.METADATA) if finished else 0.0
        key = (album.storage.uri, album.plan.run_id, wanted, stamp)
        kept = self._kept.get(key)
        parts = sum(map(len, album.parts.values()))
        if kept and (finished or kept.parts == parts or _age(kept) < FRESH_SECONDS):
            return kept
        look = self._looks.get(key)
        if look is None or look.task is None:
            if len(self._looks) >= LOOKS:
                message = "too many visitors are sorting; try again soon"
                raise ApiError(503, "busy", message, "", RETRY_SECONDS)
            look = self._looks[key] = _Look()
            look.task = asyncio.create_task(
                self._look(key, look, album, finished, wanted, condition)
            )
            look.task.add_done_callback(_heard)
        await asyncio.wait([look.task], timeout=PATIENCE_SECONDS)
        return look.task.result() if look.task.done() else Looking(min(look.share, 0.99))

    async def _look(
        self,
        key: _Key,
        look: _Look,
        album: Album,
        finished: bool,
        wanted: Wanted,
        condition: Condition | None,
    ) -> Ranking:
        def tell(rows: int) -> None:
            look.share = rows / max(1, album.plan.requests)

        def action() -> Ranking:
            return look_through(album, finished, wanted, condition, tell)

        try:
            found = await in_thread(action, threads=self._threads)
            if self._kept.getsizeof(found) <= KEPT_BYTES:
                self._kept[key] = found
            return found
        finally:
            del self._looks[key]


def _heard(task: asyncio.Task[Ranking]) -> None:
    """Whoever waited has gone, so nobody asks what went wrong; the next visitor's look tells."""
    if not task.cancelled():
        task.exception()


def _age(ranking: Ranking) -> float:
    return time.monotonic() - ranking.made_at


def look_through(
    album: Album,
    finished: bool,
    wanted: Wanted,
    condition: Condition | None,
    tell: Callable[[int], None] = lambda _: None,
) -> Ranking:
    """Find and sort what is wanted of all that a run has; `tell` is told rows so far.

    Numbers come before texts, and what lacks the column last, in either direction.

    Raises:
        UsageError: the condition cannot be asked of a record; or it, or the order, names a column
            that none has.
        FatalError, TransientError.
    """
    asked = condition.columns if condition else frozenset[str]()
    if finished:
        files = _FILES[wanted.shown] if album.plan.chooses else _FILES["all"]
        records = _of_dataset(album.storage, files)
        if album.plan.chooses:
            records = _numbered(album, records)
    else:
        files = tuple(path for parts in album.parts.values() for path in parts)
        records = _of_parts(album, files, asked | {wanted.by})
    places, keys = bytearray(), _Keys(wanted.by)
    names = _score_columns(album.storage)
    unseen = {*asked, *filter(None, [wanted.by])} - names - OWN_COLUMNS
    for number, (row, file, start, length, record) in enumerate(records):
        if number % TOLD_ROWS == 0:
            tell(row)
        if unseen:
            unseen -= record.keys()
            names |= record.keys()
        if wanted.shown != "rejects" and not wanted.shows(record["status"] == "done"):
            continue
        if (wanted.text or wanted.route) and not wanted.tells(card_of(row, 0, record)):
            continue
        if condition and not condition.holds(record):
            continue
        places += np.array((row, file, start, length), _PLACE).tobytes()
        keys.add(record)
    if unseen and names:
        name = min(unseen)
        raise unknown_column("The condition" if name in asked else "The order", name, names)
    order = keys.order(wanted.falling)
    return Ranking(
        files,
        np.frombuffer(places, _PLACE)[order],
        sum(map(len, album.parts.values())),
        time.monotonic(),
    )


_Record = tuple[int, int, int, int, Row]  # its row, its file's number, where there, what it says


_FILES: Mapping[Shown, tuple[str, ...]] = {
    "pictures": (layout.METADATA,),
    "failures": (layout.ERRORS,),
    "rejects": (layout.REJECTS,),
    "all": (layout.METADATA, layout.ERRORS),
}


def _of_dataset(storage: Storage, files: tuple[str, ...]) -> Iterator[_Record]:
    """The records of a finished run in order: its files merged."""
    each = [_lines(storage, path, file) for file, path in enumerate(files)]
    merged = heapq.merge(*each, key=lambda one: place_of_row(one[3]))
    for row, (file, start, length, record) in enumerate(merged):
        yield row, file, start, length, record


def _numbered(album: Album, records: Iterator[_Record]) -> Iterator[_Record]:
    """The same with their rows, where the plan has candidates that no file has."""
    one = next(records, None)
    for number, first in enumerate(album.first_rows[:-1]):
        if one is None:
            return
        requests = read_shard(album.storage, album.plan.run_id, number)
        requests.sort(key=place_of_request)
        rows = {request.job_id: row for row, request in enumerate(requests, first)}
        while one and one[4]["index"] <= requests[-1].index:
            yield rows[one[4]["job_id"]], *one[1:]
            one = next(records, None)


def _of_parts(album: Album, files: tuple[str, ...], columns: Set[str]) -> Iterator[_Record]:
    """The records of a run under way; with scores if one of these columns is a scorer's."""
    scored = columns & _score_columns(album.storage)
    joiner = Joiner(album.storage, album.plan.run_id) if scored else None
    numbers = {path: number for number, path in enumerate(files)}
    for shard, parts in sorted(album.parts.items()):
        found: dict[str, tuple[int, int, int, Row]] = {}
        for path in parts:
            for one in _lines(album.storage, path, numbers[path]):
                found.setdefault(one[3]["job_id"], one)
        requests = read_shard(album.storage, album.plan.run_id, shard)
        requests.sort(key=place_of_request)
        records = {one.job_id: found[one.job_id][3] for one in requests if one.job_id in found}
        if joiner:
            records = dict(zip(records, joiner.join(shard, [*records.values()]), strict=True))
        for row, request in enumerate(requests, album.first_rows[shard]):
            if request.job_id in found:
                yield row, *found[request.job_id][:3], records[request.job_id]


def _score_columns(storage: Storage) -> set[str]:
    return {name for one in read_scorings(storage) for name in one.all_columns}


def _lines(storage: Storage, path: str, file: int) -> Iterator[tuple[int, int, int, Row]]:
    """(file, where its line starts, how long that is, what it says) of every record in a file."""
    start = 0
    try:
        with storage.reader(path) as lines:
            for line in lines:
                row = read_row(line, storage.name(path))
                if row["status"] != "invalid":
                    yield file, start, len(line), row
                start += len(line)
    except FileNotFoundError:
        return


class _Keys:
    """What records are sorted by, in memory of their number alone."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._numbers, self._texts = array("d"), bytearray()
        self._with_number, self._with_text, self._without = array("L"), array("L"), array("L")
        self._count = 0

    def add(self, record: Row) -> None:
        value = value_of(record, self._column) if self._column else None
        if isinstance(value, int | float):
            self._numbers.append(value)
            self._with_number.append(self._count)
        elif value is not None:
            self._texts += str(value).encode()[:TEXT_BYTES].ljust(TEXT_BYTES, b"\0")
            self._with_text.append(self._count)
        else:
            self._without.append(self._count)
        self._count += 1

    def order(self, falling: bool) -> NDArray[np.int64]:
        """The numbers of the records, sorted; equal ones as they were added."""
        numbers = np.frombuffer(self._numbers, "f8")
        texts = np.frombuffer(bytes(self._texts), f"S{TEXT_BYTES}")
        ranks = np.unique(texts, return_inverse=True)[1]
        sign = -1 if falling else 1
        return np.concatenate(
            [
                np.frombuffer(self._with_number, "u8")[np.argsort(sign * numbers, kind="stable")],
                np.frombuffer(self._with_text, "u8")[np.argsort(sign * ranks, kind="stable")],
                np.frombuffer(self._without, "u8"),
            ]
        ).astype("i8")


def value_of(record: Row, column: str) -> Any:
    """What a record has in a column, seeds as numbers; None if it has nothing there."""
    value: Any = record.get(column)
    if column == "seed" and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


def page_of(
    album: Album, ranking: Ranking, wanted: Wanted, after: int | None, before: int | None
) -> Found:
    """The cards of a ranking from place `after` on, or those that end before place `before`.

    Raises:
        FatalError: the run's files have changed since.
    """
    first = max(0, before - PAGE_ROWS) if before is not None else after or 0
    stop = min(ranking.total, first + PAGE_ROWS if before is None else before)
    some = ranking.places[first:stop].tolist()
    storage = album.storage
    data = storage.read_ranges(
        [(ranking.files[file], start, start + length) for _, file, start, length in some]
    )
    records = [
        read_row(line, storage.name(ranking.files[file]))
        for (_, file, _, _), line in zip(some, data, strict=True)
    ]
    if wanted.by and wanted.by not in OWN_COLUMNS and any(wanted.by not in one for one in records):
        records = _with_scores(album, [row for row, *_ in some], records)
    cards = []
    for (row, *_), record in zip(some, records, strict=True):
        value = value_of(record, wanted.by) if wanted.by else None
        cards.append(
            card_of(row, record["index"] + 1, record, "" if value is None else _written(value))
        )
    return Found(
        tuple(cards),
        first if first > 0 else None,
        stop if stop < ranking.total else None,
        total=ranking.total,
        first=first,
    )


def _with_scores(album: Album, rows: Sequence[int], records: Sequence[Row]) -> list[Row]:
    """Records with the scores of their images, which those of parts lack."""
    joiner = Joiner(album.storage, album.plan.run_id)
    shards = [bisect_right(album.first_rows, row) - 1 for row in rows]
    return [joiner.join(n, [one])[0] for n, one in zip(shards, records, strict=True)]


def _written(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:40] if isinstance(value, str) else orjson.dumps(value).decode()[:40]
