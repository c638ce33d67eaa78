"""Finds what earlier runs of an output location have rendered already, by job id."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice

import numpy as np

from jobs.output import layout
from jobs.output.plan import Shard, read_plan
from jobs.output.records import Row, encode_part, parts_by_shard, read_parts
from jobs.output.storage import Storage
from producer.planning.repeats import Hashes

_BUFFERED_ROWS = 32_768  # about 32 MB of records in memory


def has_earlier(storage: Storage, run_id: str) -> bool:
    """Whether there may be records of other runs."""
    return any(name != run_id for name in storage.list("_run"))


def reuse_records(
    storage: Storage, run_id: str, shards: list[Shard], jobs: list[Hashes]
) -> tuple[list[Shard], int]:
    """Copy the records of other runs that this plan asks for too into parts of this run.

    jobs: for each shard, the first 8 bytes of its rows' job ids, in the order of the rows.
    Records go to the shards that would render them.
    Returns the shards without the chunks that have nothing left to render, and the rows reused.
    """
    others = _newest_first(storage, run_id)
    if not others or not jobs:
        return shards, 0
    flat = np.concatenate(jobs)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    starts = np.cumsum([0] + [shard.rows for shard in shards])
    known = np.zeros(flat.size, np.bool_)
    # A run takes over whatever older ones have, so what it had to give up they do not have either.
    decided = np.zeros(flat.size, np.bool_)
    # Rows that a later shard has as well are rendered there.
    decided[order[:-1][ordered[:-1] == ordered[1:]]] = True

    for part, rows in enumerate(_batches(storage, others)):
        hashes = np.frombuffer(bytes.fromhex("".join(r["job_id"][:16] for r in rows)), np.uint64)
        at = np.maximum(np.searchsorted(ordered, hashes, "right") - 1, 0)
        found = np.flatnonzero(ordered[at] == hashes)
        by_shard: dict[int, list[Row]] = defaultdict(list)
        for row in found:
            position = order[at[row]]
            if not decided[position]:
                decided[position] = True
                if rows[row]["status"] != "done":
                    continue
                known[position] = True
                by_shard[int(np.searchsorted(starts, position, "right")) - 1].append(rows[row])
        for number, records in by_shard.items():
            storage.write(layout.reused_part(run_id, number, part), encode_part(records))
        if decided.all():
            break
    kept = [
        replace(
            shard,
            chunks=tuple(
                c for c in shard.chunks if not known[start + c.start : start + c.stop].all()
            ),
        )
        for shard, start in zip(shards, starts, strict=False)
    ]
    return kept, int(known.sum())


def _newest_first(storage: Storage, run_id: str) -> list[str]:
    """The ids of the other runs that were planned whole."""
    plans = [read_plan(storage, name) for name in storage.list("_run") if name != run_id]
    newest = sorted((p for p in plans if p), key=lambda plan: plan.created_at, reverse=True)
    return [plan.run_id for plan in newest]


def _batches(storage: Storage, run_ids: list[str]) -> Iterator[list[Row]]:
    """The runs' rows, so many at a time; none of a run before the one before it is through."""
    for run_id in run_ids:
        rows = _rows(storage, run_id)
        while batch := list(islice(rows, _BUFFERED_ROWS)):
            yield batch


def _rows(storage: Storage, run_id: str) -> Iterator[Row]:
    parts = parts_by_shard(storage, run_id).values()
    yield from read_parts(storage, chain.from_iterable(parts))
