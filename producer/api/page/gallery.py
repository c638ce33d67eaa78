"""A run's records, a page at a time, by row numbers: read from the parts of the shards they lie in.

Rows count the plan's requests in manifest order, from 0. Parts are not changed once they are
written, so a shard that was read is kept for a while; nothing has to be indexed, and a run under
way is shown like a finished one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from threading import Lock
from typing import Literal, TypeVar

import anyio
from cachetools import LRUCache

from jobs.errors import InvalidRequest
from jobs.output import layout
from jobs.output.choices import Known
from jobs.output.dataset import place_of_request, rows_of_shard
from jobs.output.plan import Plan, read_plan, read_shard
from jobs.output.records import Row, group_parts, parts_by_lines, read_parts
from jobs.output.storage import Storage
from jobs.requests import Request
from producer.api.wire.threads import in_thread

Shown = Literal["pictures", "failures", "all", "rejects"]

T = TypeVar("T")

PAGE_ROWS = 40
READERS = 8  # pages that are read from storage at a time
SHARDS_A_LOOK = 8  # 32,768 rows: what one look through a run costs at most
KEPT_BYTES = 24 * 2**20  # of shards' cards: of ten shards, more than one look goes through
CARD_BYTES = 600  # what a card takes beside its prompt and its message


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of one record. line: of the manifest, from 1; file_name: "" without a picture;
    route: "model" or "model:adapter"; note: what it is sorted by; candidate: for its image, from 1,
    0 for one that is not chosen among others."""

    row: int
    line: int
    custom_id: str
    prompt: str
    route: str
    seed: int
    file_name: str
    code: str
    message: str
    note: str = ""
    candidate: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are shown, and in which order.

    shown: those of images, of requests without any, both, or of candidates that were not chosen;
    text: what a prompt, a custom_id or a message holds, in any case; where: a condition on columns,
    as of exports; by: a column that they are sorted by, "" for the manifest's order.
    """

    shown: Shown = "pictures"
    text: str = ""
    route: str = ""
    where: str = ""
    by: str = ""
    falling: bool = False

    @property
    def ranked(self) -> bool:
        """Whether the whole run must be looked through before the first can be shown."""
        return bool(self.where or self.by)

    @property
    def query(self) -> dict[str, str]:
        """The fields of an address that ask for them."""
        order = "falling" if self.falling else ""
        shown = "" if self.shown == "pictures" else self.shown
        every = {
            "show": shown, "q": self.text, "model": self.route, "where": self.where, "by": self.by,
            "order": order,
        }  # fmt: skip
        return {name: value for name, value in every.items() if value}

    def takes(self, card: Card) -> bool:
        """Whether a record is one of them."""
        if not self.shows(bool(card.file_name)):
            return False
        return self.tells(card)

    def shows(self, done: bool) -> bool:
        """Whether records with an image are shown, or those without one."""
        return self.shown == "all" or done is (self.shown == "pictures")

    def tells(self, card: Card) -> bool:
        """Whether it has the model and the text that are asked for."""
        if self.route and card.route != self.route:
            return False
        text = self.text.casefold()
        return not text or any(
            text in place.casefold() for place in (card.prompt, card.custom_id, card.message)
        )


@dataclass(frozen=True, slots=True)
class Found:
    """Some cards in order. before, after: where to look for those on either side, if there may be
    some; stopped: the look ended before it had filled the page, and more may lie further on; total:
    how many there are, None if nobody counted, and first: how many of them come before these."""

    cards: tuple[Card, ...]
    before: int | None
    after: int | None
    stopped: bool = False
    total: int | None = None
    first: int = 0


@dataclass(frozen=True)
class Gallery:
    """Reads runs' records. Every method but `read` blocks."""

    _kept: LRUCache[tuple[str, str, int, tuple[str, ...]], list[Card]] = field(
        default_factory=lambda: LRUCache(KEPT_BYTES, getsizeof=_weight)
    )
    _lock: Lock = field(default_factory=Lock)
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))

    async def read(self, action: Callable[[], T]) -> T:
        """Do what reads records beside the event loop, when its turn comes."""
        return await in_thread(action, threads=self._threads)

    def open(self, storage: Storage, run_id: str) -> Album:
        """A run's records as they are now.

        Raises:
            InvalidRequest: it has no plan there any more. FatalError, TransientError.
        """
        with ThreadPoolExecutor(1) as beside:
            listing = beside.submit(storage.times, layout.parts(run_id))
            plan = read_plan(storage, run_id)
        if plan is None:
            raise InvalidRequest("", f"run {run_id} is not in its output location", "not_found")
        times = listing.result()
        parts = parts_by_lines(plan, group_parts(run_id, times))
        return Album(self, storage, plan, parts, times)

    def cards(self, album: Album, shard: int) -> list[Card]:
        """The records of one shard, in order."""
        parts = album.parts.get(shard)
        if not parts:
            return []
        key = (album.storage.uri, album.plan.run_id, shard, tuple(parts))
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None:
            return kept
        cards = _read_cards(album, shard, parts)
        with self._lock:
            if _weight(cards) <= KEPT_BYTES:
                self._kept[key] = cards
        return cards


@dataclass(frozen=True)
class Album:
    """The records of one run. parts: shard → paths; times: name of each → when it was stored."""

    gallery: Gallery
    storage: Storage
    plan: Plan
    parts: dict[int, list[str]]
    times: dict[str, float]

    @cached_property
    def first_rows(self) -> list[int]:
        """For each shard, the row of its first request; then how many there are."""
        return list(accumulate((shard.requests for shard in self.plan.shards), initial=0))

    def after(self, row: int, wanted: Wanted, most: int = PAGE_ROWS) -> Found:
        """The first cards from a row on."""
        return self._look(max(0, row), wanted, most, forward=True)

    def before(self, row: int, wanted: Wanted, most: int = PAGE_ROWS) -> Found:
        """The last cards before a row, in order."""
        return self._look(min(row, self.plan.requests), wanted, most, forward=False)

    def find(self, row: int) -> tuple[Request | None, Row | None]:
        """A request and its record, as far as they are there yet.

        Raises InvalidRequest, code not_found, if there is no such row.
        """
        if not 0 <= row < self.plan.requests:
            raise InvalidRequest("", f"there is no row {row} in the run", "not_found")
        shard = self.shard(row)
        rows = rows_of_shard(self.storage, self.plan, shard, self.parts.get(shard, []))
        number = row - self.first_rows[shard]
        return rows[number] if number < len(rows) else (None, None)

    def shard(self, row: int) -> int:
        """The shard that a row is of."""
        return bisect_right(self.first_rows, row) - 1

    def candidates(self, row: int, image: str) -> dict[int, Known]:
        """Row → the candidates for the image of a row, by number; image: its first one's job id."""
        shard = self.shard(row)
        rows = rows_of_shard(self.storage, self.plan, shard, self.parts.get(shard, []))
        found = [
            (one[0].candidate.number, number, one)
            for number, one in enumerate(rows, self.first_rows[shard])
            if one[0].candidate and one[0].candidate.image == image
        ]
        return {number: one for _, number, one in sorted(found, key=lambda some: some[:2])}

    def record(self, row: int) -> tuple[Request, Row]:
        """One request and its record. Raises InvalidRequest, code not_found, if there is none."""
        request, found = self.find(row)
        if request and found:
            return request, found
        raise InvalidRequest("", f"row {row} has no record", "not_found")

    def _look(self, row: int, wanted: Wanted, most: int, forward: bool) -> Found:
        cards, looked, end = list[Card](), 0, None
        last = bisect_right(self.first_rows, row if forward else row - 1) - 1
        for shard in range(last, len(self.plan.shards)) if forward else range(last, -1, -1):
            if looked == SHARDS_A_LOOK:
                end = self.first_rows[shard if forward else shard + 1]
                break
            looked += shard in self.parts
            some = self.gallery.cards(self, shard)
            for card in some if forward else reversed(some):
                if (card.row >= row) is not forward or not wanted.takes(card):
                    continue
                if len(cards) == most:
                    end = card.row if forward else card.row + 1
                    break
                cards.append(card)
            if end is not None:
                break
        more = end is not None and len(cards) < most
        other = row if 0 < row < self.plan.requests else None
        if forward:
            return Found(tuple(cards), other, end, more)
        return Found(tuple(reversed(cards)), end, other, more)


def _read_cards(album: Album, shard: int, parts: list[str]) -> list[Card]:
    """Made record by record: all records of a shard at once take ten times what its cards take."""
    requests = sorted(read_shard(album.storage, album.plan.run_id, shard), key=place_of_request)
    places = {request.job_id: number for number, request in enumerate(requests)}
    cards: list[Card | None] = [None] * len(requests)
    first = album.first_rows[shard]
    for record in read_parts(album.storage, parts):
        number = places.get(record["job_id"])
        if number is not None and cards[number] is None:
            request = requests[number]
            candidate = request.candidate.number + 1 if request.candidate else 0
            card = card_of(first + number, request.index + 1, record)
            cards[number] = replace(card, candidate=candidate)
    return [card for card in cards if card]


def card_of(row: int, line: int, record: Row, note: str = "") -> Card:
    """What is shown of a record. line: of the manifest, from 1; a reused one's own may differ."""
    done = record["status"] == "done"
    adapter = record["adapter"]
    return Card(
        row,
        line,
        record["custom_id"],
        record["prompt"],
        f"{record['model']}:{adapter}" if adapter else record["model"],
        int(record["seed"]),
        record["file_name"] if done else "",
        "" if done else record.get("code", ""),
        "" if done else record.get("message", ""),
        note,
    )


def _weight(cards: list[Card]) -> int:
    return sum(CARD_BYTES + len(one.prompt) + len(one.message) for one in cards)
