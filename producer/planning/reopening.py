"""Finished runs that lack images or records: which, and chunks that render them again."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from itertools import groupby

import msgspec
import numpy as np

from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.choices import Chooser
from jobs.output.dataset import rows_by_shard
from jobs.output.plan import Chunk, Plan, read_plan, read_shard, write_plan
from jobs.output.records import chunks_done, encode_part, parts_by_shard, read_part
from jobs.output.storage import Storage
from jobs.requests import Request


class _Image(msgspec.Struct):
    """What of a dataset's row is looked at: a fifth of the time that whole rows take."""

    file_name: str


def gone_images(storage: Storage) -> frozenset[str]:
    """Paths of the images of a dataset that somebody has removed from this machine's disk.

    Of an object store none are known: to list a million objects takes minutes.

    Raises:
        FatalError: a row is none of ours.
    """
    if storage.local_root is None:
        return frozenset()
    try:
        # By 8 bytes each: two images share them once in 10 million datasets of a million.
        recorded = np.unique(np.fromiter(map(hash, _images(storage)), np.int64))
        there = (
            hash(f"images/{folder}/{name}")
            for folder in storage.list("images")
            for name in storage.list(f"images/{folder}")
        )
        gone = np.setdiff1d(recorded, np.fromiter(there, np.int64))
        if not gone.size:
            return frozenset()
        lost = frozenset(gone.tolist())
        return frozenset(image for image in _images(storage) if hash(image) in lost)
    except FileNotFoundError:
        return frozenset()
    except msgspec.DecodeError as error:
        raise FatalError(
            f"{storage.name(layout.METADATA)} holds what imagemill did not write: {error}",
            "Remove what wrote it, then run the manifest again.",
        ) from error


def _images(storage: Storage) -> Iterator[str]:
    """Paths of a dataset's images. Raises FileNotFoundError, msgspec.DecodeError."""
    decoder = msgspec.json.Decoder(_Image)
    with storage.reader(layout.METADATA) as rows:
        for row in rows:
            yield decoder.decode(row).file_name


def runs_of(storage: Storage, current: str) -> list[str]:
    """The ids of all runs of an output location, the one whose dataset is there last."""
    return [*(name for name in storage.list("_run") if name != current), current]


def reopen(storage: Storage, current: str, bad: Set[str]) -> Plan | None:
    """Take the records of bad images out of a location; their requests get chunks of their own.

    Earlier runs' too: whoever submits their manifests again has them rendered.

    current: the run whose dataset is there; bad: paths of images.

    Returns its new plan; None if it has none of these images.
    """
    return {run: _reopen(storage, run, bad) for run in runs_of(storage, current)}[current]


def _reopen(storage: Storage, run_id: str, bad: Set[str]) -> Plan | None:
    """The same for one run."""
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


def unrecorded(storage: Storage, plan: Plan) -> dict[int, list[Request]]:
    """The requests that have no record though the dataset needs it, by their plan shard."""
    chooser, found = Chooser(storage, plan), dict[int, list[Request]]()
    for number, shard in enumerate(rows_by_shard(storage, plan)):
        # Without scores nobody knows what comes after the first round.
        needed = [
            one
            for choice in chooser.choose(shard)
            for one in choice.needed
            if not (choice.unscored and one.round)
        ]
        if needed:
            found[number] = needed
    return found


def reopen_unrecorded(storage: Storage, plan: Plan) -> Plan:
    """Give requests whose records are gone chunks of their own, unless theirs is rendered again.

    Returns the new plan.
    """
    done, waiting, shards = chunks_done(storage, plan), set[str](), list(plan.shards)
    for number, shard in enumerate(shards):
        left = [one for i, one in enumerate(shard.chunks) if (number, i) not in done]
        rows = read_shard(storage, plan.run_id, number) if left else []
        waiting |= {row.job_id for chunk in left for row in rows[chunk.start : chunk.stop]}
    for number, needed in unrecorded(storage, plan).items():
        rows = read_shard(storage, plan.run_id, number)
        images = {one.candidate.image for one in needed if one.candidate}
        lost = {one.job_id for one in needed}
        # Of these images later candidates may be needed next: their rounds look for that.
        lost |= {
            row.job_id
            for row in rows
            if row.round and row.candidate and row.candidate.image in images
        }
        chunks = _chunks(rows, lost - waiting)
        shards[number] = replace(shards[number], chunks=(*shards[number].chunks, *chunks))
    reopened = replace(plan, shards=tuple(shards))
    write_plan(storage, reopened)
    return reopened


def _chunks(requests: list[Request], lost: Set[str]) -> Iterator[Chunk]:
    """Ranges of a shard's rows that hold just these job ids."""
    rows = [(row, r.key.model, r.round) for row, r in enumerate(requests) if r.job_id in lost]

    def together(one: tuple[int, tuple[int, str, int]]) -> tuple[int, str, int]:
        number, (row, model, of) = one
        return row - number, model, of

    for (_, model, of), group in groupby(enumerate(rows), together):
        found = [row for _, (row, _, _) in group]
        yield Chunk(model, found[0], found[-1] + 1, of)
