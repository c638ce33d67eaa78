"""Compares an output location's records with its images, both ways, and mends what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby

from jobs.output.dataset import planned, read_finished, write_summary
from jobs.output.plan import Chunk, Plan, read_plan, read_shard, write_plan
from jobs.output.records import encode_part, parts_by_shard, read_part
from jobs.output.storage import Storage
from jobs.requests import Request
from jobs.settings import Settings
from producer.control.progress import Display
from producer.local.embedded import Crew
from producer.local.whole import finish

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
    for run_id in [*_others(storage, current), current]:
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
    if bad:
        # Earlier runs get chunks too: whoever submits their manifests again has them rendered.
        plans = {run: _reopen(storage, run, bad) for run in [*_others(storage, current), current]}
        if plan := plans[current]:
            write_summary(storage, planned(plan))
            finish(plan, storage, settings, crew, display)
    for path in damage.orphans:
        storage.remove(path)
    return inspect(storage)


def _reopen(storage: Storage, run_id: str, bad: frozenset[str]) -> Plan | None:
    """Take the records of bad images out of a run; their requests get chunks of their own.

    Returns the run's new plan; None if it has none of these images.
    """
    plan = read_plan(storage, run_id)
    if plan is None:
        return None
    shards = list(plan.shards)
    kept: dict[str, bytes] = {}
    for number, parts in parts_by_shard(storage, run_id).items():
        if number >= len(shards):
            continue
        lost: set[str] = set()
        for part in parts:
            rows = list(read_part(storage, part))
            dropped = {row["job_id"] for row in rows if row.get("file_name") in bad}
            if dropped:
                lost |= dropped
                kept[part] = encode_part(row for row in rows if row["job_id"] not in dropped)
        if lost:
            chunks = _chunks(read_shard(storage, run_id, number), lost)
            shard = shards[number]
            shards[number] = replace(shard, chunks=(*shard.chunks, *chunks))
    if not kept:
        return None
    reopened = replace(plan, shards=tuple(shards))
    write_plan(storage, reopened)  # first: a record without a request to render would be for good
    for part, content in kept.items():
        storage.write(part, content)
    return reopened


def _chunks(requests: list[Request], lost: set[str]) -> Iterator[Chunk]:
    """Ranges of a shard's rows that hold just these job ids."""
    rows = [(row, r.key.model, r.round) for row, r in enumerate(requests) if r.job_id in lost]

    def together(one: tuple[int, tuple[int, str, int]]) -> tuple[int, str, int]:
        number, (row, model, of) = one
        return row - number, model, of

    for (_, model, of), group in groupby(enumerate(rows), together):
        found = [row for _, (row, _, _) in group]
        yield Chunk(model, found[0], found[-1] + 1, of)


def _others(storage: Storage, run_id: str) -> list[str]:
    return [name for name in storage.list("_run") if name != run_id]


def _images(storage: Storage, run_id: str) -> Iterable[tuple[str, tuple[int, str]]]:
    for parts in parts_by_shard(storage, run_id).values():
        for part in parts:
            for row in read_part(storage, part):
                if row["status"] == "done":
                    yield row["file_name"], (row["bytes"], row["sha256"])
