"""Compares an output location's records with its images, both ways, and mends what differs."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

from jobs.output.dataset import planned, read_finished, write_summary
from jobs.output.records import parts_by_shard, read_part
from jobs.output.storage import Storage
from jobs.settings import Settings
from producer.control.progress import Display
from producer.local.embedded import Crew
from producer.local.whole import finish
from producer.planning.reopening import reopen, runs_of

READERS = 16


@dataclass(frozen=True, slots=True)
class Damage:
    """images: on record; missing, torn: paths of such; orphans: images that no record names."""

    images: int
    missing: list[str]
    torn: list[str]
    orphans: list[str]

    @property
    def is_none(self) -> bool:
        return not any(self.found.values())

    @property
    def found(self) -> dict[str, list[str]]:
        """Kind of damage → paths."""
        return {"missing": self.missing, "torn": self.torn, "orphan": self.orphans}


def inspect(storage: Storage) -> Damage:
    """Read every image of a finished run's output location and compare it with its record.

    Raises:
        UsageError: no run has finished there; while one goes on, images come before their records.
    """
    current = read_finished(storage).run_id
    records: dict[str, tuple[int, str]] = {}
    # Its own records count most: an image may have been rendered anew for it.
    for run_id in runs_of(storage, current):
        records |= dict(_images(storage, run_id))
    sizes = storage.sizes("images")
    there = sorted(records.keys() & sizes.keys())

    def is_torn(path: str) -> bool:
        size, digest = records[path]
        return size != sizes[path] or sha256(storage.read(path)).hexdigest() != digest

    with ThreadPoolExecutor(READERS) as pool:
        torn = [path for path, bad in zip(there, pool.map(is_torn, there), strict=True) if bad]
    return Damage(
        len(records),
        sorted(records.keys() - sizes.keys()),
        torn,
        sorted(sizes.keys() - records.keys()),
    )


def repair(
    storage: Storage, damage: Damage, settings: Settings, crew: Crew, display: Display
) -> Damage:
    """Render what is missing or torn again, on this machine; returns what is wrong afterwards.

    Raises:
        FatalError: the weights are not those of the records, or are not here.
    """
    current = read_finished(storage).run_id
    bad = frozenset(damage.missing + damage.torn)
    if bad and (plan := reopen(storage, current, bad)):
        write_summary(storage, planned(plan))
        finish(plan, storage, settings, crew, display)
    for path in damage.orphans:
        storage.remove(path)
    return inspect(storage)


def _images(storage: Storage, run_id: str) -> Iterable[tuple[str, tuple[int, str]]]:
    for parts in parts_by_shard(storage, run_id).values():
        for part in parts:
            for row in read_part(storage, part):
                if row["status"] == "done":
                    yield row["file_name"], (row["bytes"], row["sha256"])
