"""The loop of `imagemill schedule run`. Any number of them may run side by side.

A schedule is looked at in storage only when a nominal time is due or `look_seconds` are over; a
lock in Redis keeps two from doing the same work, and nothing depends on it but that. Each schedule
is tended in a thread of its own, so that a long manifest or a dead bucket costs no other one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from threading import Thread

from jobs.errors import ImagemillError
from producer.control.locks import LOCK_SECONDS, locked
from producer.schedules.firing import Firing
from producer.schedules.journal import Journal, Opened
from producer.schedules.news import News
from producer.schedules.policy import due, horizon
from producer.schedules.table import ScheduleTable, load_schedules
from producer.schedules.templates import key
from producer.schedules.times import wall_clock

TICK_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between two looks at runs that are under way
RELOAD_SECONDS = 30.0
AT_ONCE = 8  # schedules that are tended at a time
STOP_SECONDS = 5.0  # for what is being tended when the process is to end

log = logging.getLogger(__name__)


@dataclass
class _Seen:
    """What is remembered of a schedule: up to when it is seen to, and when it is due next.

    look_at: monotonic time of the next look at open nominal times; thread: what is at it;
    problem: what was told last.
    """

    upto: datetime | None = None
    due_at: datetime | None = None
    look_at: float = 0.0
    thread: Thread | None = None
    problem: str = ""

    @property
    def is_tended(self) -> bool:
        """Whether a thread is at it."""
        return self.thread is not None and self.thread.is_alive()


@dataclass
class Scheduler:
    """Sees to all schedules of a file.

    uri: of the file; reload_seconds: between two looks at it.
    """

    uri: str
    firing: Firing
    clock: Callable[[], datetime] = wall_clock
    look_seconds: float = LOOK_SECONDS
    lock_seconds: float = LOCK_SECONDS
    reload_seconds: float = RELOAD_SECONDS
    _table: ScheduleTable | None = None
    _reload_at: float = 0.0
    _complaint: str = ""
    _seen: dict[tuple[str, ...], _Seen] = field(default_factory=dict)

    def run(self) -> None:
        """See to the schedules until the process is interrupted.

        Raises:
            UsageError: the file is wrong at the start; later its last good state goes on.
        """
        try:
            while True:
                self.tick()
                time.sleep(TICK_SECONDS)
        finally:
            until = time.monotonic() + STOP_SECONDS
            for thread in [seen.thread for seen in self._seen.values() if seen.thread]:
                thread.join(max(0.0, until - time.monotonic()))

    def tick(self) -> list[Thread]:
        """Take on what is due and have every schedule tended whose time it is, in the threads that
        it returns. What fails is told and tried again.

        Raises: as run.
        """
        table, started = self._current(), list[Thread]()
        for schedule in table.schedules.values():
            identity = (table.state.uri, schedule.name, schedule.cron, schedule.timezone.key)
            seen = self._seen.setdefault(identity, _Seen())
            journal = Journal(table.state, schedule)
            with self._told(schedule.name, seen):
                if self._take_on(journal, seen):
                    seen.look_at = 0.0
            busy = sum(one.is_tended for one in self._seen.values())
            if time.monotonic() < seen.look_at or seen.is_tended or busy >= AT_ONCE:
                continue
            # A daemon: what is cut off is gone on with, so the end need not wait for it.
            seen.thread = Thread(
                target=self._tend, args=[journal, seen], name=schedule.name, daemon=True
            )
            seen.thread.start()
            started.append(seen.thread)
        return started

    @contextmanager
    def _told(self, name: str, seen: _Seen) -> Iterator[None]:
        """Faults of any kind are told, once each, and leave the other schedules alone."""
        try:
            yield
        except Exception as error:
            seen.look_at = time.monotonic() + self.look_seconds
            if not isinstance(error, ImagemillError):
                log.exception("Schedule %s", name)
            if seen.problem != (problem := str(error)):
                seen.problem = problem
                self.firing.tell(News(name, "waits", problem))

    def _current(self) -> ScheduleTable:
        """The file's schedules, its last good ones if it is wrong or away now."""
        if self._table is not None and time.monotonic() < self._reload_at:
            return self._table
        self._reload_at = time.monotonic() + self.reload_seconds
        try:
            table = load_schedules(self.uri)
            table.check_models(self.firing.table)
            if table != self._table:
                self.firing.tell(News(self.uri, "read", ", ".join(table.schedules)))
            self._table, self._complaint = table, ""
        except ImagemillError as error:
            if self._table is None:
                raise
            if error.message != self._complaint:
                self._complaint = error.message
                self.firing.tell(News(self.uri, "left out", str(error)))
        return self._table

    def _tend(self, journal: Journal, seen: _Seen) -> None:
        runs = self.firing.known.runs
        with self._told(journal.schedule.name, seen):
            lock = lock_name(runs.prefix, journal)
            with self.firing.known.reached():
                with locked(runs.client, lock, self.lock_seconds) as mine:
                    if mine:
                        self.firing.tend(journal)
            seen.look_at = time.monotonic() + (self.look_seconds if mine else TICK_SECONDS)
            seen.problem = ""

    def _take_on(self, journal: Journal, seen: _Seen) -> bool:
        """Note the nominal times that are due by now; whether there were any."""
        now, schedule = self.clock(), journal.schedule
        if seen.upto and seen.due_at and seen.upto <= now < seen.due_at:
            return False
        chosen = list[datetime]()
        if not journal.paused():
            # When the clock went back, what it had come to is to come again.
            after = journal.since(now)
            if seen.upto and seen.upto <= now:
                after = max(after, seen.upto)
            noted = journal.noted(schedule.times.between(max(after, horizon(schedule, now)), now))
            chosen = due(schedule, after, now, noted)
        for nominal in chosen:
            journal.note(key(nominal), Opened())
        seen.upto, seen.due_at = now, next(schedule.times.after(now), None)
        return bool(chosen)


def lock_name(prefix: str, journal: Journal) -> str:
    """The lock of one schedule."""
    state = blake2b(journal.storage.uri.encode(), digest_size=8).hexdigest()
    return f"{prefix}schedule:{state}:{journal.schedule.name}"
