"""Who used how much: from storage alone, so that a wiped broker loses nothing.

Of runs it sums up the records that workers have written, of calls what workers have summed up
themselves. A record that a run took over from an earlier one does not count again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from jobs.errors import UsageError
from jobs.ids import RUN_ID
from jobs.output import layout
from jobs.output.plan import read_plan
from jobs.output.records import Row, read_part
from jobs.output.storage import Storage, open_storage
from jobs.output.usage import FOLDER, Usage, read_calls
from jobs.teams import OPEN_TEAM

Sorting = Literal["team", "model", "run", "day"]

DEEPEST = 6  # folders below a location in which outputs are looked for
CALLS = "calls"  # stands for a run, of what was rendered for callers that waited
_NO_OUTPUTS = {"images", "files", "parts"}


@dataclass(frozen=True, slots=True)
class Line:
    """What one team, model, run or day used."""

    name: str
    usage: Usage

    def row(self) -> dict[str, str | int | float]:
        """By column."""
        seconds = round(self.usage.device_seconds, 3)
        return {"name": self.name, **asdict(self.usage), "device_seconds": seconds}


def used(locations: Sequence[str], by: Sorting) -> list[Line]:
    """What was used by the runs whose outputs, and the calls whose stores lie at or below these
    locations, most first; days in order.

    Raises:
        UsageError: neither lies there.
        TransientError, FatalError: an output cannot be read.
    """
    found: defaultdict[str, Usage] = defaultdict(Usage)
    places = {one.uri: one for start in locations for one in _places(open_storage(start), DEEPEST)}
    if not places:
        raise UsageError(
            f"no run's output and no facade's store lies at or below {', '.join(locations)}",
            f"Name such, or what lies at most {DEEPEST} folders above them.",
        )
    for _, storage in sorted(places.items()):
        for run_id in filter(RUN_ID.fullmatch, storage.folders("_run")):
            team = _team(storage, run_id) if by == "team" else ""
            for row in _records(storage, run_id):
                found[team or _name(by, run_id, row)].note_row(row)
        for day, calls in read_calls(storage):
            names = {"team": calls.team, "model": calls.model, "run": CALLS, "day": day}
            found[names[by]].add(calls.usage)
    lines = [Line(name, usage) for name, usage in found.items()]
    if by == "day":
        return sorted(lines, key=lambda one: one.name)
    return sorted(lines, key=lambda one: (-one.usage.device_seconds, one.name))


def _places(storage: Storage, deepest: int) -> Iterator[Storage]:
    """Outputs of runs, and stores of facades; below the former nothing is looked for."""
    folders = storage.folders("")
    if "_run" in folders:
        yield storage
        return
    skipped = _NO_OUTPUTS
    if FOLDER in folders:
        yield storage
        skipped = skipped | {"calls"}  # their images
    if deepest:
        for name in folders:
            if name not in skipped and not name.startswith((".", "_")):
                yield from _places(open_storage(storage.name(name)), deepest - 1)


def _records(storage: Storage, run_id: str) -> Iterator[Row]:
    """What workers have written of a run."""
    folder = layout.parts(run_id)
    for name in storage.list(folder):
        if layout.shard_of_part(name) is not None and ".reused." not in name:
            yield from read_part(storage, f"{folder}/{name}")


def _team(storage: Storage, run_id: str) -> str:
    plan = read_plan(storage, run_id)
    return plan.team if plan else OPEN_TEAM


def _name(by: Sorting, run_id: str, row: Row) -> str:
    if by == "run":
        return run_id
    if by == "model":
        return row["model"]
    return row["created_at"][:10]
