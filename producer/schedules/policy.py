"""Which nominal times are due, and what becomes of them while earlier runs go on. No storage."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Literal

from producer.schedules.table import Schedule
from producer.schedules.templates import key

# What is no older was not missed: another run was being planned, or the process started again.
GRACE = timedelta(minutes=5)

Verdict = Literal["begin", "wait", "skip"]


def horizon(schedule: Schedule, now: datetime) -> datetime:
    """Nominal times up to this moment are never made up any more."""
    return now - max(GRACE, schedule.catchup_window if schedule.catchup != "none" else GRACE)


def due(
    schedule: Schedule, after: datetime, now: datetime, noted: Collection[str]
) -> list[datetime]:
    """The nominal times to take on, ascending.

    after: those up to it have been seen to; noted: keys of those that were taken on. Nothing is
    remembered of those that are passed over, so that a clock that was ahead has them come again.
    """
    times = list(schedule.times.between(max(after, horizon(schedule, now)), now))
    missing = [nominal for nominal in times if key(nominal) not in noted]
    if schedule.catchup == "all":
        return missing
    fresh = [nominal for nominal in missing if nominal > now - GRACE]
    if schedule.catchup == "none" or (times and times[-1] > now - GRACE):
        return fresh
    # Only the last one; if that was taken on, those before it are to stay as they are.
    return missing[-1:] if missing and missing[-1] == times[-1] else []


def judge(schedule: Schedule, running: int, waiting: int) -> Verdict:
    """What becomes of a nominal time beside so many earlier ones that run, or wait to."""
    if schedule.overlap == "allow" or not (running or waiting):
        return "begin"
    if schedule.overlap == "queue":
        return "wait"
    return "skip" if running else "wait"
