"""What a message stands for: a run that is live, and a chunk of it as storage has it."""

from __future__ import annotations

import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import cast

from jobs.broker.attempts import Attempt
from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.choices import Chooser
from jobs.output.dataset import rows_of_shard
from jobs.output.plan import Chunk, Plan, read_plan, read_shard
from jobs.output.records import (
    Record,
    RecordStatus,
    chunks_done,
    group_parts,
    read_part,
    write_part,
)
from jobs.output.scores import write_scores_of
from jobs.output.storage import Storage, open_storage
from jobs.requests import BatchKey, Request

SHARDS_KEPT = 2  # the one under way, and the next; megabytes each


NOT_BEGUN = Attempt(0, 0)


@dataclass(frozen=True)
class LiveRun:
    """A run as this process found it. `done` and `parts` are what storage held at that moment."""

    epoch: int
    plan: Plan
    storage: Storage
    done: frozenset[tuple[int, int]]
    parts: frozenset[str]

    def needed(self, shard: int) -> list[Request]:
        """The candidates of a shard that are to be rendered next, as storage has it now."""
        names = self.storage.list(layout.parts(self.plan.run_id))
        parts = group_parts(self.plan.run_id, names).get(shard, [])
        known = rows_of_shard(self.storage, self.plan, shard, parts)
        choices = Chooser(self.storage, self.plan).choose(known)
        return [request for one in choices for request in one.needed]


def open_run(run_id: str, epoch: int, out: str) -> LiveRun:
    """Read a run's plan and what there is of it.

    Raises:
        FatalError: there is no plan.
    """
    storage = open_storage(out)
    plan = read_plan(storage, run_id)
    if plan is None:
        raise FatalError(
            f"storage {out} has no plan of run {run_id}",
            "Submit the manifest again; workers and producers need the same storage.",
        )
    parts = frozenset(storage.list(layout.parts(run_id)))
    return LiveRun(epoch, plan, storage, frozenset(chunks_done(storage, plan)), parts)


class Shards:
    """Shards of plans, read once for all of their chunks. Many threads may ask."""

    def __init__(self) -> None:
        self._read: OrderedDict[tuple[str, str, int], list[Request]] = OrderedDict()
        self._lock = Lock()

    def get(self, run: LiveRun, number: int) -> list[Request]:
        """All requests of a shard. Raises: as read_shard."""
        key = run.storage.uri, run.plan.run_id, number
        with self._lock:
            if key not in self._read:
                self._read[key] = read_shard(run.storage, run.plan.run_id, number)
                while len(self._read) > SHARDS_KEPT:
                    self._read.popitem(last=False)
            self._read.move_to_end(key)
            return self._read[key]


@dataclass(frozen=True)
class Todo:
    """What storage says of a chunk. settled: job id → status of those that have a record."""

    settled: dict[str, RecordStatus]
    requests: list[Request]


@dataclass(frozen=True)
class Work:
    """One try at a chunk that a message asks for. `attempt` is NOT_BEGUN at first."""

    run: LiveRun
    shards: Shards
    shard: int
    chunk: int
    attempt: Attempt = NOT_BEGUN

    @property
    def run_id(self) -> str:
        return self.run.plan.run_id

    @property
    def number(self) -> int:
        """The chunk's number within the run."""
        return self.run.plan.number(self.shard, self.chunk)

    @property
    def _rows(self) -> Chunk:
        return self.run.plan.shards[self.shard].chunks[self.chunk]

    @property
    def model(self) -> str:
        return self._rows.model

    def planned_weights(self, key: BatchKey) -> str:
        """The fingerprint of what renders a request, its adapter included, at planning."""
        return self.run.plan.fingerprints[key.route]

    def is_done(self) -> bool:
        """Whether the chunk is complete, as storage says."""
        return self.run.storage.exists(layout.done_part(self.run_id, self.shard, self.chunk))

    def todo(self) -> Todo:
        """What has a record, and what is to be rendered."""
        settled = self.settled()
        requests = self.requests()
        if self._rows.round:
            needed = {one.job_id for one in self.run.needed(self.shard)}
            requests = [one for one in requests if one.job_id in needed]
        return Todo(settled, [one for one in requests if one.job_id not in settled])

    def settled(self) -> dict[str, RecordStatus]:
        """job id → status of the requests that have a record already."""
        names: Iterable[str] = self.run.parts
        # An earlier attempt may have left a part since.
        if self.attempt.number > 1 or self.is_done():
            names = self.run.storage.list(layout.parts(self.run_id))
        folder = layout.parts(self.run_id)
        mine = (f"{self.shard:05d}.{self.chunk:04d}.", f"{self.shard:05d}.reused.")
        found: dict[str, RecordStatus] = {
            row["job_id"]: cast("RecordStatus", row["status"])
            for name in sorted(names)
            if name.startswith(mine)
            for row in read_part(self.run.storage, f"{folder}/{name}")
        }
        if not found:
            return found
        # Reused records are kept by shard, so they may be another chunk's.
        own = {request.job_id for request in self.requests()}
        return {job_id: status for job_id, status in found.items() if job_id in own}

    def requests(self) -> list[Request]:
        """All requests of the chunk."""
        requests = self.shards.get(self.run, self.shard)
        return requests[self._rows.start : self._rows.stop]

    def store_done(self, records: list[Record]) -> None:
        """Write the part that completes the chunk. Every image must be in storage by then."""
        path = layout.done_part(self.run_id, self.shard, self.chunk)
        self._store_scores(records, f"{self.chunk:04d}")
        write_part(self.run.storage, path, records)

    def store_interrupted(self, records: list[Record]) -> None:
        """Write what an attempt has finished so far, so that nobody renders it again."""
        if records:
            token = uuid.uuid4().hex[:8]
            path = layout.interrupted_part(self.run_id, self.shard, self.chunk, token)
            self._store_scores(records, f"{self.chunk:04d}.{token}")
            write_part(self.run.storage, path, records)

    def _store_scores(self, records: list[Record], chunk: str) -> None:
        """Write what the records' images got, before a part says that they are done."""
        write_scores_of(self.run.storage, self.run_id, self.shard, chunk, records)


def count(statuses: Iterable[RecordStatus]) -> tuple[int, int]:
    """(done, not done) of some requests."""
    counts = Counter(statuses)
    return counts["done"], counts.total() - counts["done"]
