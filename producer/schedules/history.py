"""Schedules as people see them: what comes next, what became of what came."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Literal

from jobs.output.dataset import read_summary
from jobs.output.storage import open_storage
from producer.schedules.journal import Fire, Journal, end_of
from producer.schedules.table import Schedule
from producer.schedules.templates import moment_of

EntryState = Literal[
    "waiting", "running", "finished", "failed", "cancelled", "removed", "skipped", "refused"
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One nominal time, in the schedule's time zone. reason: why it has no run, or waits."""

    nominal: str
    state: EntryState
    manual: bool = False
    run_id: str = ""
    out: str = ""
    done: int = 0
    without_image: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """One schedule. next: its next nominal time, empty while it is paused; paused: why it is, empty
    if it is not."""

    name: str
    cron: str
    timezone: str
    next: str
    paused: str
    last: Entry | None


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A nominal time to come, in the schedule's time zone, and what will be submitted."""

    name: str
    nominal: str
    manifest: str
    out: str


def upcoming(schedule: Schedule, now: datetime, count: int) -> list[Upcoming]:
    """The next nominal times."""
    return [
        Upcoming(
            schedule.name,
            schedule.local(nominal).isoformat(),
            schedule.manifest_at(nominal),
            schedule.out_at(nominal),
        )
        for nominal in islice(schedule.times.after(now), count)
    ]


def overview(journal: Journal, now: datetime) -> Overview:
    """A schedule as it stands."""
    schedule, pause = journal.schedule, journal.paused()
    following = None if pause else next(schedule.times.after(now), None)
    return Overview(
        schedule.name,
        schedule.cron,
        schedule.timezone.key,
        schedule.local(following).isoformat() if following else "",
        f"{pause.reason}, since {pause.at}" if pause else "",
        next(iter(entries(journal, 1)), None),
    )


def entries(journal: Journal, count: int) -> list[Entry]:
    """The newest nominal times that were taken on, newest first."""
    return [_entry(journal, nominal) for nominal in journal.latest(count)]


def _entry(journal: Journal, nominal: str) -> Entry:
    local = journal.schedule.local(moment_of(nominal)).isoformat()
    fire = journal.fire(nominal)
    if fire is None:
        opened = journal.opened_as(nominal)
        manual, problem = (opened.manual, opened.problem) if opened else (False, "")
        return Entry(local, "waiting", manual, reason=problem)
    if fire.decision != "begun":
        return Entry(local, fire.decision, fire.manual, reason=fire.reason)
    return _of_run(journal, fire, local)


def _of_run(journal: Journal, fire: Fire, local: str) -> Entry:
    end = journal.end(fire.nominal)
    if end is None:  # no scheduler has looked since
        summary = read_summary(open_storage(fire.out))
        if summary and summary.run_id == fire.run_id and summary.state != "running":
            end = end_of(summary)
    if end is None:
        return Entry(local, "running", fire.manual, fire.run_id, fire.out)
    state: EntryState = "failed" if end.is_failure else end.state
    return Entry(local, state, fire.manual, fire.run_id, fire.out, end.done, end.without_image)
