"""Blocks of manifest lines, planned in their order by several processes."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from multiprocessing import get_context

from jobs.children import die_with_parent
from jobs.errors import UsageError
from producer.planning.manifest import Block
from producer.planning.planner import PlannedBlock, Planner

ALONE_SECONDS = 0.3  # that planning has taken before other processes are started
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


def plan_each(planner: Planner, blocks: Iterator[Block]) -> Iterator[tuple[Block, PlannedBlock]]:
    """Plan blocks in their order: here, and in other processes as soon as these have started, which
    takes longer than most manifests do."""
    cutter, started = _Cutter(), time.monotonic()

    def plan_here(block: Block) -> Iterator[tuple[Block, PlannedBlock]]:
        parts = deque([block])
        while parts:
            part = parts.popleft()
            result = planner.plan(part)
            if result.images:
                parts.extendleft(reversed(cutter.cut(part, result.images)))
            else:
                yield part, result

    for block in blocks:
        yield from plan_here(block)
        if time.monotonic() - started > ALONE_SECONDS:
            break
    if (following := next(blocks, None)) is None:
        return

    def settle() -> Iterator[tuple[Block, PlannedBlock]]:
        block, future = pending.popleft()
        result = future.result()
        if result.images:
            for part in reversed(cutter.cut(block, result.images)):
                pending.appendleft((part, submit(part)))
        else:
            yield block, result

    def submit(block: Block) -> Future[PlannedBlock]:
        return pool.submit(_plan, pickle.dumps(planner), block)

    workers = min(os.cpu_count() or 1, 4)
    pending = deque[tuple[Block, Future[PlannedBlock]]]()
    # Spawned: storage clients and their threads do not survive a fork.
    # Garbage is collected after blocks that leave some, not among millions of live objects.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_child) as pool:
        try:
            starting = [pool.submit(os.getpid) for _ in range(workers)]  # done once they have
            for block in chain((following,), blocks):
                if not any(one.done() for one in starting):
                    yield from plan_here(block)
                    continue
                pending.append((block, submit(block)))
                while len(pending) > 2 * workers:
                    yield from settle()
            while pending:
                yield from settle()
        finally:
            pool.shutdown(cancel_futures=True)


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


def _begin_child() -> None:
    """A killed command must leave no process behind that waits for work for ever."""
    gc.freeze()
    gc.disable()
    die_with_parent()
