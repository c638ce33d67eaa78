"""Chunks: every row once, as long as they may be, and short ones where workers would wait."""

import heapq
import random
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import pytest

from jobs.output.plan import Chunk
from producer.planning.chunks import CHUNK_SECONDS, Calls, collect, cut

SLOTS = 16


def shard(calls: int, seconds: float, *, guessed: bool = False, model: str = "m") -> Calls:
    """Full calls of one model."""
    rows = range(SLOTS, SLOTS * (calls + 1), SLOTS)
    return collect([(model, 0, stop, seconds) for stop in rows], {model} if guessed else ())


def sizes(chunks: Sequence[Chunk]) -> list[int]:
    """The calls of each chunk."""
    return [(one.stop - one.start) // SLOTS for one in chunks]


def rendered(chunks: Sequence[int], workers: int) -> float:
    """When the last of some workers is done that take chunks in turn, of so many seconds each."""
    free = [0.0] * workers
    for seconds in chunks:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free)


@pytest.mark.parametrize(("workers", "calls"), [(64, 6), (64, 32), (8, 2), (1, 100)])
def test_workers_end_together(workers: int, calls: int) -> None:
    chunks = sizes(next(cut([shard(workers * calls, 4.0)])))
    assert sum(chunks) == workers * calls
    assert rendered(chunks, workers) <= calls * 1.05


def test_a_fleet_that_is_larger_gets_more_chunks() -> None:
    one = shard(300 * 6, 4.0)
    for_all, fewer = (sizes(next(cut([one], workers))) for workers in (300, 64))
    assert rendered(for_all, 300) == 6
    assert rendered(fewer, 300) > 6


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crew_that_is_known_gets_no_more_chunks_than_it_needs(workers: int) -> None:
    """Each end of a chunk is one at which a device may wait."""
    calls = 62 * workers
    chunks = sizes(next(cut([shard(calls, 16.0, guessed=True)], workers)))
    assert len(chunks) <= calls / 3
    assert rendered(chunks, workers) == calls / workers


def test_a_long_run_has_no_more_chunks_than_it_needs() -> None:
    shards = [shard(256, 0.5) for _ in range(250)]
    chunks = list(chain.from_iterable(cut(shards)))
    seconds = [calls * 0.5 for calls in sizes(chunks)]
    assert max(seconds) == CHUNK_SECONDS
    assert sum(seconds) / len(seconds) > CHUNK_SECONDS / 2


def test_no_chunk_outlasts_the_others_however_wrong_the_times_are() -> None:
    rng = random.Random(3)
    true = [rng.uniform(1, 20) for _ in range(1000)]
    for guess in (0.001, 60.0):
        starts = list(accumulate(sizes(next(cut([shard(1000, guess, guessed=True)]))), initial=0))
        spent = [sum(true[a:b]) for a, b in pairwise(starts)]
        assert rendered(spent, 16) <= 1.05 * sum(true) / 16


def test_what_is_only_a_guess_makes_neither_long_nor_short_chunks() -> None:
    slow, fast = (shard(10_000, guess, guessed=True) for guess in (60.0, 0.001))
    assert sizes(next(cut([slow])))[0] == 4
    assert sizes(next(cut([fast])))[0] == 32
    assert sizes(next(cut([shard(10_000, 60.0)])))[0] == 1


def test_chunks_are_of_one_model_one_round_and_one_shard() -> None:
    rows = [("a", 0, 1, 0.5), ("a", 0, 3, 0.5), ("b", 0, 4, 0.5), ("b", 1, 5, 0.5)]
    shards = [collect(rows, ()), collect([], ()), collect(rows, ())]
    first, none, second = cut(shards)
    assert none == ()
    assert first == (Chunk("a", 0, 1), Chunk("a", 1, 3), Chunk("b", 3, 4), Chunk("b", 4, 5, 1))
    assert second == first
