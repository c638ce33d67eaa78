"""Finds the request that kills its worker: by a crash of the driver, all of the memory, a hang.

A chunk that has killed several workers is rendered with care: before a batch is rendered, its
requests are marked in Redis, and before the next one its records are stored. So the next death
tells the batch. Whoever was in it renders alone from then on, and after some deaths not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.broker.attempts import Attempts
from jobs.requests import Request
from worker.chunks import Work
from worker.inputs import Prepared
from worker.render import BatchRenderer, batches
from worker.storing import Output

CHUNK_DEATHS = 3  # from so many on it is rendered with care
REQUEST_DEATHS = 3  # of which the last were those of this request alone


@dataclass(frozen=True)
class Suspects:
    """The order and the care in which a chunk's requests are rendered at this attempt.

    renderer: the chunk's model; not held, as others may need its memory between two batches.
    """

    attempts: Attempts
    work: Work
    output: Output
    renderer: Callable[[], BatchRenderer]

    @property
    def careful(self) -> bool:
        return self.work.attempt.deaths >= CHUNK_DEATHS

    def batches(self, requests: list[Request]) -> Iterator[list[Request]]:
        """What is to be rendered. The guilty go to the output as failures instead."""
        if not self.careful or not requests:
            yield from self._batches(requests)
            return
        deaths = self.attempts.suspects(self.work.run_id, [request.job_id for request in requests])
        known = list(zip(requests, deaths, strict=True))
        yield from self._batches([one for one, count in known if not count])
        yield from ([one] for one, count in known if 0 < count < REQUEST_DEATHS)
        for one, count in known:
            if count >= REQUEST_DEATHS:
                message = f"the worker process died or hung {count} times while rendering this"
                failure = self.renderer().ended(Prepared(one), "failed", "worker_died", message)
                self.output.take([failure])

    def _batches(self, requests: list[Request]) -> Iterator[list[Request]]:
        return batches(
            requests,
            lambda key: self.renderer().slots(key),
            lambda key: self.renderer().call_key(key),
        )

    @contextmanager
    def watch(self, batch: list[Request]) -> Iterator[None]:
        """If the worker dies in this block, it counts for the batch; its records are stored."""
        if not self.careful:
            yield
            return
        names = [request.job_id for request in batch]
        self.attempts.watch(self.work.run_id, names)
        try:
            yield
            self.work.store_interrupted(self.output.records())
        finally:  # whatever went wrong, the worker lives
            self.attempts.trust(self.work.run_id, names)
