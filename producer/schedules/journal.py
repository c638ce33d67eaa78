"""What became of a schedule's nominal times. In storage, so that a wiped Redis loses nothing.

Below the file's `state`, for each schedule; a nominal time is written as templates.key does:

    <schedule>/since/<cron>.json            since when its nominal times count
               paused.json                  it is there: nothing new begins
               failures.json                the last failures in a row
               open/<nominal>.json          taken on, and not at its end
               fires/<day>/<nominal>.json   what was decided: its run, skipped or refused
               ends/<day>/<nominal>.json    how its run ended

Why nothing is lost: a nominal time is taken on by `open`, which stays until its end is written.
Why nothing is doubled: a run is planned, then decided on, then launched. To decide is to create an
object, so the first scheduler's decision stands and the others launch that very run, which is a
`resume` of what is under way already. Decisions and ends never change; every step can be taken
again by anyone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Literal, TypeVar

import orjson
from pydantic import TypeAdapter

from jobs.output.dataset import Summary, now
from jobs.output.storage import Storage
from producer.schedules.table import Schedule
from producer.schedules.templates import key, moment_of

T = TypeVar("T")

Decision = Literal["begun", "skipped", "refused"]
EndState = Literal["finished", "cancelled", "removed"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A nominal time that was taken on. manual: by run-now; problem: why it waits, if it does."""

    manual: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Fire:
    """What was decided on a nominal time (`nominal`, its key). reason: why it has no run."""

    nominal: str
    decision: Decision
    at: str
    manual: bool = False
    run_id: str = ""
    out: str = ""
    manifest: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended: its counts. removed: somebody has deleted its output."""

    state: EndState
    at: str
    done: int = 0
    failed: int = 0
    without_image: int = 0

    @property
    def is_failure(self) -> bool:
        """Whether it was ours to render and was not, or has no image at all."""
        return self.state == "finished" and (self.failed > 0 or self.done == 0)


def end_of(summary: Summary) -> End:
    """The end of a run whose run.json says that it is over."""
    state: EndState = "cancelled" if summary.state == "cancelled" else "finished"
    return End(state, now(), summary.done, summary.failed, summary.without_image)


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when and why a schedule is paused."""

    at: str
    reason: str


_OPENED, _PAUSE = TypeAdapter(Opened), TypeAdapter(Pause)
_FIRE, _END = TypeAdapter(Fire), TypeAdapter(End)
_MOMENT, _KEYS = TypeAdapter(datetime), TypeAdapter(list[str])


@dataclass(frozen=True)
class Journal:
    """One schedule's. Raises TransientError or FatalError when the storage is away."""

    storage: Storage
    schedule: Schedule

    def since(self, moment: datetime) -> datetime:
        """The moment after which nominal times count: when this cron expression was first seen."""
        stored = self.storage.create(self._since, orjson.dumps(moment))
        since = _MOMENT.validate_json(stored)
        if since > moment:  # a clock was ahead
            self.count_from(moment)
        return min(since, moment)

    def count_from(self, moment: datetime) -> None:
        """Have nominal times count from then on only."""
        self.storage.write(self._since, orjson.dumps(moment))

    def paused(self) -> Pause | None:
        return self._read("paused.json", _PAUSE)

    def pause(self, pause: Pause) -> Pause:
        """Pause the schedule, if it is not; returns the pause that stands."""
        stored = self.storage.create(self._path("paused.json"), orjson.dumps(pause))
        return _PAUSE.validate_json(stored)

    def resume(self, moment: datetime) -> None:
        """Go on with nominal times after a moment, which is now."""
        self.count_from(moment)
        self.storage.remove(self._path("failures.json"))
        self.storage.remove(self._path("paused.json"))

    def note(self, nominal: str, opened: Opened) -> None:
        """Take a nominal time on, or note why it waits."""
        self.storage.write(self._path(f"open/{nominal}.json"), orjson.dumps(opened))

    def opened(self) -> list[str]:
        """The nominal times that are not at their end, ascending."""
        names = self.storage.list(self._path("open"))
        return [name.removesuffix(".json") for name in names if _is_record(name)]

    def opened_as(self, nominal: str) -> Opened | None:
        return self._read(f"open/{nominal}.json", _OPENED)

    def noted(self, times: Iterable[datetime]) -> set[str]:
        """The keys of all nominal times on the days of these that were taken on."""
        found = set(self.opened())
        for day in sorted({_day(key(nominal)) for nominal in times}):
            found.update(self._names("fires", day))
        return found

    def decide(self, fire: Fire) -> Fire:
        """Decide on a nominal time; returns the decision that stands, an earlier one if any."""
        path = self._path(f"fires/{_day(fire.nominal)}/{fire.nominal}.json")
        return _FIRE.validate_json(self.storage.create(path, orjson.dumps(fire)))

    def fire(self, nominal: str) -> Fire | None:
        """What was decided; None if nothing was."""
        return self._read(f"fires/{_day(nominal)}/{nominal}.json", _FIRE)

    def end(self, nominal: str) -> End | None:
        return self._read(f"ends/{_day(nominal)}/{nominal}.json", _END)

    def write_end(self, nominal: str, end: End) -> None:
        path = self._path(f"ends/{_day(nominal)}/{nominal}.json")
        self.storage.create(path, orjson.dumps(end))

    def count_failure(self, nominal: str, failed: bool) -> int:
        """How many failures in a row there are with this one; none if it is none."""
        path = "failures.json"
        before = self._read(path, _KEYS) or []
        row = sorted({*before, nominal}) if failed else []
        if row != before:
            self.storage.write(self._path(path), orjson.dumps(row))
        return len(row)

    def close(self, nominal: str) -> None:
        """A nominal time is at its end."""
        self.storage.remove(self._path(f"open/{nominal}.json"))

    def latest(self, count: int) -> list[str]:
        """The newest nominal times that were taken on, newest first."""
        found = set(self.opened())
        for day in reversed(self.storage.list(self._path("fires"))):
            if len(found) >= count and min(sorted(found)[-count:]) > f"{day.replace('-', '')}U":
                break
            found.update(self._names("fires", day))
        return sorted(found, reverse=True)[:count]

    @property
    def _since(self) -> str:
        # Of the expression: one that is changed has nothing to make up.
        content = f"{self.schedule.cron} {self.schedule.timezone.key}".encode()
        return self._path(f"since/{blake2b(content, digest_size=8).hexdigest()}.json")

    def _names(self, kind: str, day: str) -> list[str]:
        names = self.storage.list(self._path(f"{kind}/{day}"))
        return [name.removesuffix(".json") for name in names if _is_record(name)]

    def _path(self, path: str) -> str:
        return f"{self.schedule.name}/{path}"

    def _read(self, path: str, kind: TypeAdapter[T]) -> T | None:
        try:
            return kind.validate_json(self.storage.read(self._path(path)))
        except FileNotFoundError:
            return None


def _day(nominal: str) -> str:
    return f"{moment_of(nominal):%Y-%m-%d}"


def _is_record(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")
