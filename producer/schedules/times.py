"""Nominal times of a cron expression in its time zone, by the rules of Debian's cron.

When clocks go forward, what was due at a time of day that does not exist is due right after the
gap; when they go back, a fixed time of day comes once and `*` in hours or minutes goes on evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_LOOK_BACK = timedelta(hours=3)  # more than clocks are ever set back by


@dataclass(frozen=True, slots=True)
class Cron:
    """Five fields (minute, hour, day, month, weekday) and where they are local time."""

    expression: str
    zone: ZoneInfo

    def check(self) -> None:
        """Raises ValueError if the expression is none, or names no time at all."""
        if len(self.expression.split()) != 5:
            raise ValueError("must have five fields: minute hour day month weekday")
        try:
            found = next(self.after(wall_clock()), None)
        except CronSimError as error:
            raise ValueError(f"{str(error).lower()} in {self.expression!r}") from error
        if found is None:
            raise ValueError(f"{self.expression!r} is never due")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Every nominal time after a moment, ascending, in UTC: local ones do not compare."""
        last = start = moment.astimezone(UTC)
        # Of fixed times of day, CronSim takes a start in a repeated hour for one in its first pass,
        # and gives the end of a gap once for each time in it.
        if not any(field.startswith("*") for field in self.expression.split()[:2]):
            start -= _LOOK_BACK
        for local in CronSim(self.expression, start.astimezone(self.zone)):
            if (nominal := local.astimezone(UTC)) > last:
                last = nominal
                yield nominal

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Every nominal time after a moment, up to another and with it."""
        for nominal in self.after(after):
            if nominal > until:
                return
            yield nominal


def wall_clock() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
