"""Batches as their teams see them, taken from step to step until they end.

Any facade may take any step at any time; a lock in Redis keeps two from taking the same at once.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import redis
from redis.exceptions import LockError

from jobs.errors import ImagemillError
from jobs.runs import Progress
from producer.api.batch_steps import Steps
from producer.api.batch_store import (
    Batch,
    BatchError,
    BatchErrors,
    BatchStore,
    RequestCounts,
    Started,
    Status,
    Ticket,
    face,
)
from producer.api.errors import ApiError

LOCK_SECONDS = 300  # a step that takes longer may be taken twice, to the same end
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

    def create(self, ticket: Ticket) -> Batch:
        """Note a new batch; `tend` does the rest."""
        self.store.add(ticket)
        self._remember(ticket.team, ticket.id)
        return face(ticket, "validating")

    def get(self, team: str, batch_id: str) -> Batch:
        """A team's batch as it is now. Raises ApiError 404."""
        ticket = self.store.ticket(team, batch_id)
        if final := self.store.final(ticket):
            return final
        self._remember(team, batch_id)  # Redis may have been wiped
        return self._current(ticket)

    def cancel(self, team: str, batch_id: str) -> Batch:
        """Have a batch end soon. Raises ApiError 404, or 400 if it has ended."""
        ticket = self.store.ticket(team, batch_id)
        if final := self.store.final(ticket):
            raise ApiError(400, "batch_ended", f"the batch is {final.status} already")
        self.store.cancel(ticket)
        return self._current(ticket)

    def recover(self) -> None:
        """Find every batch that has not ended, after Redis or all facades were gone."""
        for team, batch_id in self.store.unfinished():
            self._remember(team, batch_id)

    def tend(self) -> None:
        """Take the next step of every batch that has not ended; what fails is tried again later.

        Raises:
            redis.RedisError: Redis is away.
        """
        for name in cast("set[bytes]", self.client.smembers(f"{self.prefix}batches")):
            if self._due.get(name, 0.0) > time.monotonic():
                continue
            team, _, batch_id = name.decode().partition("/")
            lock = self.client.lock(f"{self.prefix}batch:{batch_id}", LOCK_SECONDS, blocking=False)
            if not lock.acquire():
                continue
            try:
                if self.steps.advance(self.store.ticket(team, batch_id)):
                    self.client.srem(f"{self.prefix}batches", name)
            except redis.RedisError:
                raise
            except Exception as error:  # of whatever kind: the other batches go on
                self._due[name] = time.monotonic() + RETRY_SECONDS
                known = isinstance(error, ImagemillError)
                log.warning("Batch %s: %s", batch_id, error, exc_info=not known)
            finally:
                with suppress(LockError):  # the step took longer than the lock lasts
                    lock.release()

    def _current(self, ticket: Ticket) -> Batch:
        """A batch that has not ended."""
        started, cancelled = self.store.started(ticket), self.store.cancelled_at(ticket)
        if started is None:
            status: Status = "cancelling" if cancelled else "validating"
            return face(ticket, status, cancelling_at=cancelled)
        progress = self.steps.progress(started)
        finished = progress is not None and progress.state == "finished"
        problem = progress.problem if progress and progress.state == "paused" else ""
        paused = BatchErrors(data=[BatchError(code="paused", message=problem)])
        return face(
            ticket,
            "cancelling" if cancelled else "finalizing" if finished else "in_progress",
            errors=paused if problem else None,
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
