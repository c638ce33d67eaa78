"""Who used how much: summed up from the records in storage, so that a wiped broker loses nothing.

Counts work, not results: what was rendered twice counts twice, and a record that a run took over
from an earlier one does not count again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.errors import UsageError
from jobs.ids import RUN_ID
from jobs.output import layout
from jobs.output.plan import read_plan
from jobs.output.records import Row, read_part
from jobs.output.storage import Storage, open_storage
from jobs.teams import OPEN_TEAM

Sorting = Literal["team", "model", "run", "day"]

DEEPEST = 6  # folders below a location in which outputs are looked for
_NO_OUTPUTS = {"images", "files", "parts"}


@dataclass(slots=True)
class Usage:
    """What one team, model, run or day used. device_seconds: of pipeline calls, summed over
    devices; bytes: of images that were stored."""

    name: str
    device_seconds: float = 0.0
    images: int = 0
    rejected: int = 0
    failed: int = 0
    bytes: int = 0

    def add(self, row: Row) -> None:
        """Count one record."""
        self.device_seconds += row["seconds_render"] + row.get("seconds_lost", 0.0)
        self.images += row["status"] == "done"
        self.rejected += row["status"] == "rejected"
        self.failed += row["status"] == "failed"
        self.bytes += row.get("bytes", 0)


def used(locations: Sequence[str], by: Sorting) -> list[Usage]:
    """What the runs used whose outputs lie at or below these locations, most first; days in order.

    Raises:
        UsageError: no run's output lies there.
        TransientError, FatalError: an output cannot be read.
    """
    found: defaultdict[str, Usage] = defaultdict(lambda: Usage(""))
    uris = sorted({one.uri for start in locations for one in outputs(open_storage(start))})
    if not uris:
        raise UsageError(
            f"no run's output lies at or below {', '.join(locations)}",
            f"Name outputs, or what lies at most {DEEPEST} folders above them.",
        )
    for uri in uris:
        storage = open_storage(uri)
        for run_id in filter(RUN_ID.fullmatch, storage.folders("_run")):
            team = _team(storage, run_id) if by == "team" else ""
            for row in _records(storage, run_id):
                name = team or _name(by, run_id, row)
                found[name].name = name
                found[name].add(row)
    for one in found.values():
        one.device_seconds = round(one.device_seconds, 3)
    if by == "day":
        return sorted(found.values(), key=lambda one: one.name)
    return sorted(found.values(), key=lambda one: (-one.device_seconds, one.name))


def outputs(storage: Storage, deepest: int = DEEPEST) -> Iterator[Storage]:
    """The outputs of runs at or below a location; what lies below one of them is not looked at."""
    folders = storage.folders("")
    if "_run" in folders:
        yield storage
    elif deepest:
        for name in folders:
            if name not in _NO_OUTPUTS and not name.startswith((".", "_")):
                yield from outputs(open_storage(storage.name(name)), deepest - 1)


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
