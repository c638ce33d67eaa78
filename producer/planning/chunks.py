"""Cuts the pipeline calls of a plan into chunks: long ones first, short ones towards its end.

A chunk takes at most a share of what its model has left. So nobody is at a long chunk while others
have nothing left to do, however many workers there are and however wrong the times may be that one
knows; nor does a long run have many more messages and parts than it needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from jobs.output.plan import Chunk

CHUNK_SECONDS = 30.0  # of device time that one message stands for
GUESSED_CALLS = (4, 32)  # that it has at least and at most where their time is a guess
WORKERS = 64  # that a plan is cut for where fewer live and more may be started
EACH = 2  # chunks that each of them gets at least of what is left
LATER = 8  # times as long are those of later rounds, of which only a part is needed


@dataclass(frozen=True, slots=True)
class Calls:
    """The pipeline calls of one shard, in the order of its rows; arrays have an entry a call.

    models: names; model: the number of each one's among these; round: of its candidates, 0 for
    most; stop: the row after its last; seconds: of a device, as far as one knows; guessed: the
    models of which one does not.
    """

    models: tuple[str, ...]
    model: npt.NDArray[np.uint16]
    round: npt.NDArray[np.uint8]
    stop: npt.NDArray[np.uint32]
    seconds: npt.NDArray[np.float32]
    guessed: frozenset[str]

    def by_model(self) -> Iterator[tuple[str, int, list[tuple[int, float]]]]:
        """Of each model and round (row after the last, seconds) of calls, which lie together."""
        calls = zip(
            self.model.tolist(), self.round.tolist(), self.stop.tolist(), self.seconds.tolist(),
            strict=True,
        )  # fmt: skip
        for (number, of), some in groupby(calls, itemgetter(0, 1)):
            yield self.models[number], of, [(stop, seconds) for _, _, stop, seconds in some]

    def first_seconds(self) -> float:
        """Of all calls that are surely needed."""
        return float(self.seconds[self.round == 0].sum())


def collect(calls: Iterable[tuple[str, int, int, float]], guessed: Iterable[str]) -> Calls:
    """Calls as (model, round, row after the last, seconds), in order."""
    named = list(calls)
    models = tuple(dict.fromkeys(name for name, *_ in named))
    numbers = {name: number for number, name in enumerate(models)}
    return Calls(
        models,
        np.array([numbers[name] for name, *_ in named], np.uint16),
        np.array([of for _, of, _, _ in named], np.uint8),
        np.array([stop for *_, stop, _ in named], np.uint32),
        np.array([seconds for *_, seconds in named], np.float32),
        frozenset(guessed),
    )


def cut(shards: Sequence[Calls], workers: int = WORKERS) -> Iterator[tuple[Chunk, ...]]:
    """The chunks of each shard of a plan: ranges of whole calls, each of one model and round.

    workers: how many there will be.
    """
    shares = EACH * workers
    left: defaultdict[str, float] = defaultdict(float)
    for shard in shards:
        for number, model in enumerate(shard.models):
            own = (shard.model == number) & (shard.round == 0)
            left[model] += float(shard.seconds[own].sum())
    for shard in shards:
        chunks: list[Chunk] = []
        start = end = 0
        for model, of, calls in shard.by_model():
            wanted = taken = 0.0
            for stop, seconds in calls:
                if end > start and taken + seconds > wanted:
                    chunks.append(Chunk(model, start, end, of))
                    start = end
                if end == start:
                    longest = _longest(seconds) if model in shard.guessed else CHUNK_SECONDS
                    wanted = LATER * longest if of else min(longest, left[model] / shares)
                    taken = 0.0
                taken, end = taken + seconds, stop
                left[model] -= 0.0 if of else seconds
            chunks.append(Chunk(model, start, end, of))
            start = end
        yield tuple(chunks)


def _longest(seconds: float) -> float:
    """Of a chunk whose calls take so long by a mere guess."""
    least, most = GUESSED_CALLS
    return min(max(CHUNK_SECONDS, least * seconds), most * seconds)
