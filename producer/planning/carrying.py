"""What fills no pipeline call in its block of lines waits for the next blocks, so that it does.

What has filled calls, or waited for long, makes shards of its own. So a manifest whose neighbours
share nothing renders as full as a sorted one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from jobs.output.plan import SHARD_LINES
from jobs.requests import BatchKey, Request
from producer.planning.grouping import Group, Grouper, in_order

BLOCKS = 8  # that something waits for at most, and then once more for others to make a shard with


@dataclass
class _Waiting:
    """Requests of one key, fewer than fill a call, since block number `since`."""

    since: int
    requests: list[Request]


class Carrier:
    """Takes what blocks leave over, in their order; gives groups that make a shard together."""

    def __init__(self, grouper: Grouper) -> None:
        self._grouper = grouper
        self._blocks = 0
        self._waiting: dict[BatchKey, _Waiting] = {}  # whoever has waited longest first
        self._ready: list[Group] = []
        self._ready_since = 0

    def add(self, left: Iterable[Group]) -> Iterator[list[Group]]:
        """Take what one block leaves over; gives what is to be a shard now."""
        self._blocks += 1
        for key, requests in left:
            self._join(key, requests)
        latest = self._blocks - BLOCKS
        over = takewhile(lambda one: one[1].since <= latest, self._waiting.items())
        for key in [key for key, _ in over]:
            self._close(key)
        rows = sum(len(requests) for _, requests in self._ready)
        if rows >= SHARD_LINES or (rows and self._blocks - self._ready_since >= BLOCKS):
            yield from self._take()

    def end(self) -> Iterator[list[Group]]:
        """All that is left, after the last block."""
        for key in list(self._waiting):
            self._close(key)
        yield from self._take()

    def _join(self, key: BatchKey, requests: list[Request]) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = _Waiting(self._blocks, requests)
            return
        joined = waiting.requests + requests
        width = self._grouper.width(key)
        if len(joined) < width:
            waiting.requests = joined
            return
        # Whoever waited is served first, so all that is left over is of this block.
        self._add_ready((key, joined[:width]))
        del self._waiting[key]
        if len(joined) > width:
            self._waiting[key] = _Waiting(self._blocks, joined[width:])

    def _close(self, key: BatchKey) -> None:
        for group in self._grouper.fit((key, self._waiting.pop(key).requests)):
            self._add_ready(group)

    def _add_ready(self, group: Group) -> None:
        if not self._ready:
            self._ready_since = self._blocks
        self._ready.append(group)

    def _take(self) -> Iterator[list[Group]]:
        some: list[Group] = []
        rows = 0
        for group in in_order(self._ready):
            if some and rows + len(group[1]) > SHARD_LINES:
                yield some
                some, rows = [], 0
            some.append(group)
            rows += len(group[1])
        self._ready = []
        if some:
            yield some
