"""Blocks of manifest lines, planned in their order by several processes."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache

from jobs.errors import UsageError
from producer.helpers import Helpers
from producer.planning.manifest import Block
from producer.planning.planner import PlannedBlock, Planner

ALONE_SECONDS = 0.1  # that planning has taken before other processes are started
MOST_HELPERS = 4  # as many as one process can read for and write
AHEAD = 3  # blocks that are planned here before one that another process is still at
SENT = 2  # blocks that another process has at a time: the next is at hand when it has planned one
KEPT = 8  # blocks, for each other process, that are planned while an earlier one is not yet
MAX_EXPANDED = 10_000_000  # images that the lines with recipes may stand for


@dataclass
class _Cutter:
    """Cuts blocks that stand for too many images, and counts what comes of it."""

    expanded: int = 0

    def cut(self, block: Block, images: Mapping[int, int]) -> list[Block]:
        """Raises UsageError if there are more than MAX_EXPANDED images by now."""
        self.expanded += sum(images.values())
        if self.expanded > MAX_EXPANDED:
            raise UsageError(
                f"the lines up to {block.first + len(block.lines) - 1:,} stand for more than "
                f"{MAX_EXPANDED:,} images, with their n, sweep or zip",
                "If that is meant, split the manifest.",
            )
        return list(block.cut(images))


@dataclass(slots=True)
class _Part:
    """A block; planned: what becomes of it, once somebody has it."""

    block: Block
    planned: Future[PlannedBlock] | None = None


class _Others:
    """Other processes that plan blocks."""

    def __init__(self, count: int, stack: ExitStack) -> None:
        self._helpers = stack.enter_context(Helpers(count, _begin, SENT))
        self._count = count

    def have_room(self, parts: Iterable[_Part]) -> bool:
        """Whether one would wait, of all parts, and few are kept until an earlier one is there."""
        begun = [part.planned.done() for part in parts if part.planned]
        is_waiting = begun.count(False) < SENT * self._count
        return is_waiting and len(begun) < KEPT * self._count and self._helpers.is_ready

    def plan(self, planner: Planner, block: Block) -> Future[PlannedBlock]:
        return self._helpers.submit(_plan, pickle.dumps(planner), block)


def plan_each(planner: Planner, blocks: Iterator[Block]) -> Iterator[tuple[Block, PlannedBlock]]:
    """Plan blocks in their order: here, and in other processes too once these have started, which
    takes longer than most manifests do.

    Raises:
        FatalError: another process has ended.
    """
    cutter, begun = _Cutter(), time.monotonic()
    parts = deque[_Part]()
    count = min((os.cpu_count() or 1) - 1, MOST_HELPERS)
    others: _Others | None = None

    def settle() -> Iterator[tuple[Block, PlannedBlock]]:
        """What becomes of the first part; nothing yet where it is cut into parts of its own."""
        first = parts.popleft()
        assert first.planned
        result = first.planned.result()
        if result.images:
            parts.extendleft(map(_Part, reversed(cutter.cut(first.block, result.images))))
        else:
            yield first.block, result

    with ExitStack() as stack:
        while (part := _unplanned(parts, blocks)) or parts:
            late = time.monotonic() - begun > ALONE_SECONDS
            if part and count and late and not others:
                others = _Others(count, stack)
            first = parts[0].planned
            # In this order: others have something to do before one that is done is seen to.
            if part and others and others.have_room(parts):
                part.planned = others.plan(planner, part.block)
            elif first and first.done():
                yield from settle()
            elif part and (part is parts[0] or len(parts) < 2 * count + AHEAD):
                part.planned = Future()
                with uncollected():
                    part.planned.set_result(planner.plan(part.block))
            else:
                yield from settle()  # which waits


def _unplanned(parts: deque[_Part], blocks: Iterator[Block]) -> _Part | None:
    """The first part that nobody plans yet; the next block, if there is none."""
    for part in parts:
        if part.planned is None:
            return part
    for block in blocks:
        parts.append(_Part(block))
        return parts[-1]
    return None


@contextmanager
def uncollected() -> Iterator[None]:
    """Without a search for garbage among millions of live objects, every few hundred requests."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@lru_cache(maxsize=1)
def _unpacked(planner: bytes) -> Planner:
    """Another one only when it was told something: so it still knows what it has found out."""
    found: Planner = pickle.loads(planner)
    return found


def _plan(planner: bytes, block: Block) -> PlannedBlock:
    planned = _unpacked(planner).plan(block)
    if planned.errors:  # exceptions are cycles; requests are none
        gc.collect()
    return planned


def _begin() -> None:
    """Garbage is collected after blocks that leave some, not among millions of live objects."""
    gc.freeze()
    gc.disable()
