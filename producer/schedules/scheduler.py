"""The loop of `imagemill schedule run`. Any number of them may run side by side.

A schedule is looked at in storage only when a nominal time is due or `look_seconds` are over; a
lock in Redis keeps two from doing the same work, and nothing depends on it but that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b

from jobs.errors import ImagemillError
from jobs.output.storage import open_storage
from producer.control.locks import LOCK_SECONDS, locked
from producer.schedules.firing import Firing
from producer.schedules.journal import Journal, Opened
from producer.schedules.news import News
from producer.schedules.policy import due, horizon
from producer.schedules.table import ScheduleTable, load_schedules
from producer.schedules.templates import key

TICK_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between two looks at runs that are under way
RELOAD_SECONDS = 30.0  # between two looks at the schedules file


def wall_clock() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


@dataclass
class _Seen:
    """What is remembered of a schedule: up to when it is seen to, and when it is due next.

    look_at: monotonic time of the next look at open nominal times; problem: what was told last.
    """

    upto: datetime | None = None
    due_at: datetime | None = None
    look_at: float = 0.0
    problem: str = ""


@dataclass
class Scheduler:
    """Sees to all schedules of a file. uri: of the file, which is read again now and then."""

    uri: str
    firing: Firing
    clock: Callable[[], datetime] = wall_clock
    look_seconds: float = LOOK_SECONDS
    lock_seconds: float = LOCK_SECONDS
    _table: ScheduleTable | None = None
    _reload_at: float = 0.0
    _complaint: str = ""
    _seen: dict[tuple[str, str, str], _Seen] = field(default_factory=dict)

    def run(self) -> None:
        """See to the schedules until the process is interrupted.

        Raises:
            UsageError: the file is wrong at the start; later its last good state goes on.
        """
        while True:
            self.tick()
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        """See to every schedule once. What fails is told and tried again.

        Raises: as run.
        """
        table = self._current()
        for schedule in table.schedules.values():
            identity = (schedule.name, schedule.cron, schedule.timezone.key)
            seen = self._seen.setdefault(identity, _Seen())
            try:
                self._see_to(Journal(open_storage(table.state), schedule), seen)
                seen.problem = ""
            except ImagemillError as error:
                seen.look_at = time.monotonic() + self.look_seconds
                if seen.problem != error.message:
                    seen.problem = error.message
                    self.firing.tell(News(schedule.name, "waits", str(error)))

    def _current(self) -> ScheduleTable:
        """The file's schedules, its last good ones if it is wrong or away now."""
        if self._table is not None and time.monotonic() < self._reload_at:
            return self._table
        self._reload_at = time.monotonic() + RELOAD_SECONDS
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

    def _see_to(self, journal: Journal, seen: _Seen) -> None:
        if self._take_on(journal, seen):
            seen.look_at = 0.0
        if time.monotonic() < seen.look_at:
            return
        known = self.firing.known
        with (
            known.reached(),
            locked(
                known.runs.client, lock_name(known.runs.prefix, journal), self.lock_seconds
            ) as mine,
        ):
            if mine:
                self.firing.tend(journal)
        seen.look_at = time.monotonic() + (self.look_seconds if mine else TICK_SECONDS)

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
