"""Batches as their teams see them, taken from step to step until they end.

Any facade may take any step at any time; a lock in Redis keeps two from taking the same at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import cast

import redis

from jobs.broker.progress import Progress
from jobs.errors import ImagemillError, InvalidRequest
from producer.api.openai.batch.steps import Next, Steps
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
from producer.control.locks import locked

TEND_SECONDS = 1.0  # between two looks at the batches
STEPS = 4  # that a facade takes at a time, each of another team
RETRY_SECONDS = 10.0  # after a step that failed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batches:
    """The batches of a deployment. Every method blocks."""

    store: BatchStore
    steps: Steps
    client: redis.Redis
    prefix: str
    _hurry: Event = field(default_factory=Event)
    _due: dict[bytes, Next] = field(default_factory=dict)  # of those that wait for something
    _failed: set[bytes] = field(default_factory=set)  # whose last step did
    _under_way: dict[str, bytes] = field(default_factory=dict)  # by team

    def run(self) -> None:
        """Take the batches on, from step to step, until `stop`."""
        recovered = False
        while not self.steps.stopping.is_set():
            self._hurry.clear()
            try:
                if not recovered:
                    self.recover()
                    recovered = True
                self.tend()
            except (ImagemillError, redis.RedisError) as error:
                log.warning("Batches wait: %s", error)
            self._hurry.wait(TEND_SECONDS)

    def stop(self) -> None:
        """Have `run` end, and steps that take long as well."""
        self.steps.stopping.set()
        self._hurry.set()

    def create(self, ticket: Ticket) -> Batch:
        """Note a new batch; `tend` does the rest."""
        # First: without Redis there must be no batch that the caller does not know of.
        self._remember(ticket.team, ticket.id)
        self.store.add(ticket)
        self._hurry.set()
        return face(ticket, "validating")

    def get(self, team: str, batch_id: str) -> Batch:
        """A team's batch as it is now. Raises InvalidRequest, code not_found."""
        return self._now(self.store.get(team, batch_id))

    def _now(self, ticket: Ticket) -> Batch:
        if final := self.store.final(ticket):
            return final
        self._remember(ticket.team, ticket.id)  # Redis may have been wiped
        return self._current(ticket)

    def listed(self, team: str, ids: Iterable[str]) -> Iterator[Batch]:
        """Those of a team's batches that are still there."""
        for batch_id in ids:
            if ticket := self.store.find(team, batch_id):
                yield self._now(ticket)

    def cancel(self, team: str, batch_id: str) -> Batch:
        """Have a batch end soon.

        Raises:
            InvalidRequest: code not_found, or batch_ended.
        """
        ticket = self.store.get(team, batch_id)
        if final := self.store.final(ticket):
            raise InvalidRequest("", f"the batch is {final.status} already", "batch_ended")
        self.store.cancel(ticket)
        self._remember(team, batch_id)
        self._due.pop(_name(ticket), None)
        self._hurry.set()
        return self._current(ticket)

    def recover(self) -> None:
        """Find every batch that has not ended, after Redis or all facades were gone."""
        for team, batch_id in self.store.unfinished():
            self._remember(team, batch_id)

    def tend(self) -> None:
        """Begin the next step of every batch that is due, each in a thread, one a team at a time.

        Raises:
            redis.RedisError: Redis is away.
        """
        for name in cast("set[bytes]", self.client.smembers(f"{self.prefix}batches")):
            team = name.decode().partition("/")[0]
            if team in self._under_way or len(self._under_way) >= STEPS or not self._is_due(name):
                continue
            self._under_way[team] = name
            # Daemons: a step that is cut off is taken again, so the end need not wait for it.
            Thread(target=self._step, args=[name], name="batch", daemon=True).start()

    def _is_due(self, name: bytes) -> bool:
        """Whether there may be something to do; asks Redis at most, never storage."""
        due = self._due.get(name)
        if due is None or due.at <= time.time():
            return True
        if not due.run_id:
            return False
        progress = self.steps.known.runs.progress(due.run_id)
        return progress is None or progress.state in ("finished", "cancelled")

    def _step(self, name: bytes) -> None:
        """Take the next step of a batch; what fails is tried again later."""
        team, _, batch_id = name.decode().partition("/")
        try:
            with locked(self.client, f"{self.prefix}batch:{batch_id}") as mine:
                if mine:
                    self._take(name, self.store.find(team, batch_id))
        except Exception as error:  # of whatever kind: the other batches go on
            known = isinstance(error, ImagemillError | redis.RedisError)
            log.warning("Batch %s: %s", batch_id, error, exc_info=not known)
            self._due[name] = Next(time.time() + RETRY_SECONDS)
        finally:
            del self._under_way[team]
            self._hurry.set()  # the team's next one may be due

    def _take(self, name: bytes, ticket: Ticket | None) -> None:
        if ticket is None:
            # The first time its ticket may only come later than its name; then it was deleted.
            if name in self._failed:
                self._forget(name)
            else:
                self._failed.add(name)
                self._due[name] = Next(time.time() + RETRY_SECONDS)
            return
        following = self.steps.advance(ticket)
        self._failed.discard(name)
        if following is None:
            self._forget(name)
        else:
            self._due[name] = following

    def _forget(self, name: bytes) -> None:
        self._due.pop(name, None)
        self._failed.discard(name)
        with suppress(redis.RedisError):  # then it is found, and forgotten, once more
            self.client.srem(f"{self.prefix}batches", name)

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


def _name(ticket: Ticket) -> bytes:
    """As Redis keeps it."""
    return f"{ticket.team}/{ticket.id}".encode()


def _counts(started: Started, progress: Progress | None) -> RequestCounts:
    """Of requests, although a run counts images."""
    if progress is None:
        return RequestCounts(total=started.requests, failed=started.refused)
    share = (started.requests - started.refused) / max(1, progress.requests)
    return RequestCounts(
        total=started.requests,
        completed=int(progress.done * share),
        failed=started.refused + int(progress.failed * share),
    )
