"""The plan of a run, as it lies in storage: an index (plan.json) and shards of requests.

A shard holds consecutive manifest lines, ordered by batch key. A chunk is a range of a shard's
rows that share a model; it is the unit of queueing. Rows outside every chunk were done by an
earlier run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from operator import attrgetter
from typing import Any

import orjson
from pydantic import TypeAdapter

from jobs.output import layout
from jobs.output.storage import Storage
from jobs.requests import BatchKey, Request

SHARD_LINES = 4096


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [start, stop) of one shard, all of one model."""

    model: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's entry in the index. `requests` counts all its rows, reused ones included."""

    requests: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Plan:
    """The index of a run. Written after everything it names, so it exists only when all does.

    fingerprints: model name (with ":adapter" for adapters) → what its weights were when planned.
    invalid: lines left out by --skip-invalid; reused: requests whose images already existed.
    """

    run_id: str
    manifest: str
    seed: int
    created_at: str
    fingerprints: dict[str, str]
    shards: tuple[Shard, ...]
    invalid: int = 0
    reused: int = 0

    @property
    def requests(self) -> int:
        return sum(shard.requests for shard in self.shards)

    @property
    def chunks(self) -> int:
        return sum(len(shard.chunks) for shard in self.shards)

    @property
    def models(self) -> list[str]:
        """The models that still have something to render, in order of first use."""
        return list(dict.fromkeys(c.model for shard in self.shards for c in shard.chunks))

    @cached_property
    def first_numbers(self) -> list[int]:
        """For each shard, the number within the whole run of its first chunk."""
        return list(accumulate((len(shard.chunks) for shard in self.shards), initial=0))

    def number(self, shard: int, chunk: int) -> int:
        """The chunk's number within the whole run, from 0."""
        return self.first_numbers[shard] + chunk


_PLAN = TypeAdapter(Plan)
_KEYS = TypeAdapter(tuple[BatchKey, ...])


def write_plan(storage: Storage, plan: Plan) -> None:
    storage.write(layout.plan(plan.run_id), orjson.dumps(plan))


def read_plan(storage: Storage, run_id: str) -> Plan | None:
    """The run's plan; None if it was never completed."""
    try:
        return _PLAN.validate_json(storage.read(layout.plan(run_id)))
    except FileNotFoundError:
        return None


def encode_shard(requests: Iterable[Request]) -> bytes:
    """A shard's file: its batch keys, and a row a request in their order.

    A row holds a request's fields, with its key's number for the key. Not compressed: that would
    be a tenth of planning's time, for a file a tenth as large as the smallest images.
    """
    keys: list[BatchKey] = []
    rows: list[tuple[Any, ...]] = []
    for key, group in groupby(requests, attrgetter("key")):
        rows += [(*r[:2], len(keys), *r[3:]) for r in group]
        keys.append(key)
    return orjson.dumps({"keys": keys, "rows": rows})


def read_shard(storage: Storage, run_id: str, number: int) -> list[Request]:
    """All requests of a shard, in the order that the chunks' ranges refer to."""
    shard = orjson.loads(storage.read(layout.shard(run_id, number)))
    keys = _KEYS.validate_python(shard["keys"])
    return [_request(keys, row) for row in shard["rows"]]


def _request(keys: tuple[BatchKey, ...], row: list[Any]) -> Request:
    return Request._make((*row[:2], keys[row[2]], *row[3:-2], *map(tuple, row[-2:])))
