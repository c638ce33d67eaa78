"""Batches as their teams see them, taken from step to step until they end.

Any facade may take any step at any time; a lock in Redis keeps two from taking the same at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Thread
from typing import cast

import redis
from redis.exceptions import LockError

from jobs.broker.heartbeat import heartbeat
from jobs.broker.runs import Progress
from jobs.errors import ImagemillError
from producer.api.openai.batch.steps import Steps
from producer.api.openai.batch.store import (
    Batch,
    BatchError,
    BatchErrors,
    BatchStatus,
    BatchStore,
    RequestCounts,
    Started,
    Ticket,
    face,
)
from producer.api.wire.errors import ApiError

LOCK_SECONDS = 30  # after that another facade takes over from one that is gone
STEPS = 4  # that a facade takes at a time
RETRY_SECONDS = 10.0  # after a step that failed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batches:
    """The batches of a deployment. Every method blocks."""

    store: BatchStore
    steps: Steps
    client: redis.Redis
    prefix: str
    _due: dict[bytes, float] = field(default_factory=dict)  # monotonic, of steps that failed
    _under_way: set[bytes] = field(default_factory=set)
    _free: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(STEPS))

    def create(self, ticket: Ticket) -> Batch:
        """Note a new batch; `tend` does the rest."""
        # First: without Redis there must be no batch that the caller does not know of.
        self._remember(ticket.team, ticket.id)
        self.store.add(ticket)
        return face(ticket, "validating")

    def get(self, team: str, batch_id: str) -> Batch:
        """A team's batch as it is now. Raises ApiError 404."""
        ticket = self.store.ticket(team, batch_id)
        if final := self.store.final(ticket):
            return final
        self._remember(team, batch_id)  # Redis may have been wiped
        return self._current(ticket)

    def listed(self, team: str, ids: Iterable[str]) -> Iterator[Batch]:
        """Those of a team's batches that are still there."""
        for batch_id in ids:
            with suppress(ApiError):
                yield self.get(team, batch_id)

    def cancel(self, team: str, batch_id: str) -> Batch:
        """Have a batch end soon. Raises ApiError 404, or 400 if it has ended."""
        ticket = self.store.ticket(team, batch_id)
        if final := self.store.final(ticket):
            raise ApiError(400, "batch_ended", f"the batch is {final.status} already")
        self.store.cancel(ticket)
        self._remember(team, batch_id)
        return self._current(ticket)

    def recover(self) -> None:
        """Find every batch that has not ended, after Redis or all facades were gone."""
        for team, batch_id in self.store.unfinished():
            self._remember(team, batch_id)

    def tend(self) -> None:
        """Begin the next step of every batch that has not ended, each in a thread.

        Raises:
            redis.RedisError: Redis is away.
        """
        for name in cast("set[bytes]", self.client.smembers(f"{self.prefix}batches")):
            if name not in self._under_way and self._due.get(name, 0.0) <= time.monotonic():
                self._free.acquire()
                self._under_way.add(name)
                # Daemons: a step that is cut off is taken again, so the end need not wait for it.
                Thread(target=self._step, args=[name], name="batch", daemon=True).start()

    def _step(self, name: bytes) -> None:
        """Take the next step of a batch; what fails is tried again later."""
        team, _, batch_id = name.decode().partition("/")
        try:
            with self._locked(batch_id) as mine:
                if mine and self.steps.advance(self.store.ticket(team, batch_id)):
                    self._forget(name)
            self._due.pop(name, None)
        except Exception as error:  # of whatever kind: the other batches go on
            known = isinstance(error, ImagemillError | redis.RedisError)
            log.warning("Batch %s: %s", batch_id, error, exc_info=not known)
            if name in self._due and isinstance(error, ApiError):
                # Its ticket was deleted. The first time it may only come later than its name.
                self._forget(name)
            else:
                self._due[name] = time.monotonic() + RETRY_SECONDS
        finally:
            self._under_way.discard(name)
            self._free.release()

    def _forget(self, name: bytes) -> None:
        self._due.pop(name, None)
        with suppress(redis.RedisError):  # then it is found, and forgotten, once more
            self.client.srem(f"{self.prefix}batches", name)

    @contextmanager
    def _locked(self, batch_id: str) -> Iterator[bool]:
        """Whether no other facade is at this batch; holds it as long as the block runs."""
        lock = self.client.lock(
            f"{self.prefix}batch:{batch_id}", LOCK_SECONDS, blocking=False, thread_local=False
        )
        if not lock.acquire():
            yield False
            return
        try:
            with heartbeat(
                "locks of batches",
                LOCK_SECONDS / 3,
                lambda: lock.extend(LOCK_SECONDS, replace_ttl=True),
            ):
                yield True
        finally:
            with suppress(LockError):  # Redis was wiped
                lock.release()

    def _current(self, ticket: Ticket) -> Batch:
        """A batch that has not ended."""
        started, cancelled = self.store.started(ticket), self.store.cancelled_at(ticket)
        if started is None:
            status: BatchStatus = "cancelling" if cancelled else "validating"
            return face(ticket, status, cancelling_at=cancelled)
        progress = self.steps.progress(started)
        finished = progress is not None and progress.state == "finished"
        # Not the problem itself: it names places of ours.
        message = f"run {started.run_id} is paused; whoever operates this sees why in its status"
        paused = BatchErrors(data=[BatchError(code="paused", message=message)])
        is_paused = progress is not None and progress.state == "paused" and progress.problem
        return face(
            ticket,
            "cancelling" if cancelled else "finalizing" if finished else "in_progress",
            errors=paused if is_paused else None,
            in_progress_at=started.at,
            cancelling_at=cancelled,
            request_counts=_counts(started, progress),
        )

    def _remember(self, team: str, batch_id: str) -> None:
        with self.steps.known.reached():
            self.client.sadd(f"{self.prefix}batches", f"{team}/{batch_id}")


def _counts(started: Started, progress: Progress | None) -> RequestCounts:
    """Of requests, although a run counts images."""
    if progress is None:
        return RequestCounts(total=started.requests)
    share = started.requests / max(1, progress.requests)
    return RequestCounts(
        total=started.requests,
        completed=int(progress.done * share),
        failed=int(progress.failed * share),
    )
