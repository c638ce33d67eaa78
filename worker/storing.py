"""Encodes and stores images in threads while the device renders on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextvars import copy_context
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Lock, Semaphore
from typing import Any

from jobs.errors import FatalError, TransientError
from jobs.marks import PARAMETERS, packet
from jobs.output import layout
from jobs.output.dataset import now
from jobs.output.records import Record, RecordStatus, Timings
from jobs.output.storage import Storage
from jobs.requests import Request
from jobs.traces import past
from worker.counts import Counts
from worker.encode import encode
from worker.meter import Meter
from worker.parameters import describe
from worker.render import Rendered, failed

IN_FLIGHT = 3  # batches of a process: one being stored, one waiting, the one that has just come
SMALL_PIXELS = 256 * 256  # on a local disk, fewer cost less than handing them to another thread


Placed = tuple[Rendered, str]  # and where its file goes, below its storage


@dataclass(frozen=True)
class Shelf:
    """Where images go, and what their records say about whoever rendered them.

    scorers: those of the run, as its plan names them, by which stored images are scored at once.
    """

    storage: Storage
    worker: str
    attempt: int
    scorers: tuple[str, ...] = ()

    def put_all(self, images: Sequence[Placed]) -> list[Record]:
        """As `put`, one after the other, without scores."""
        return [self.put(one, path)[0] for one, path in images]

    def put(self, one: Rendered, path: str) -> tuple[Record, bytes]:
        """Encode and store one image; a failure, also of the encoding, only becomes a record.

        Returns the record, and the file; empty if there is none.

        Raises:
            TransientError, FatalError: it could not be stored.
        """
        request, data = one.request, b""
        started = encoded = stored = time.perf_counter()
        if one.pixels is not None:
            try:
                mark = packet(one.stack.repo, one.stack.revision) if one.stack.mark else b""
                text = describe(request, one.stack) if one.stack.mark == PARAMETERS else ""
                data = encode(one.pixels, request.format, mark, text)
            except Exception as error:  # whatever a pipeline made that Pillow does not take
                reason = f"its image cannot be encoded: {type(error).__name__}: {error}"
                one = failed(one, "render_error", reason)
            encoded = stored = time.perf_counter()
        if data:
            self.storage.write(path, data, durable=False)
            stored = time.perf_counter()
        record = Record(
            request=request,
            status=one.status,
            stack=one.stack,
            worker=self.worker,
            attempt=self.attempt,
            created_at=now(),
            timings=Timings(
                load=round(one.seconds_load, 6),
                compile=round(one.seconds_compile, 6),
                render=round(one.seconds, 6),
                lost=round(one.seconds_lost, 6),
                encode=round(encoded - started, 6),
                store=round(stored - encoded, 6),
                started=round(one.started, 6),
                images=one.together,
            ),
            file_name=path if data else "",
            sha256=sha256(data).hexdigest() if data else "",
            bytes=len(data),
            code=one.code,
            message=one.message,
            prompt_tokens_cut=one.tokens_cut,
        )
        return record, data


Put = Callable[[Shelf, Sequence[Placed]], list[Record]]


@dataclass(frozen=True)
class Counted:
    """A way to put images that counts what becomes of them."""

    put: Put
    counts: Counts

    def __call__(self, shelf: Shelf, images: Sequence[Placed]) -> list[Record]:
        """Raises: as the other."""
        try:
            records = self.put(shelf, images)
        except (TransientError, FatalError):
            for one, _ in images[:1]:
                self.counts.once("storage_errors", one.request.key.model)
            raise
        for record in records:
            self.counts.record(record)
        encode = sum(record.timings.encode for record in records)
        past(("encode", encode), ("store", sum(record.timings.store for record in records)))
        return records


@dataclass
class Output:
    """What one chunk has rendered, on its way into storage. Made anew for each attempt.

    put: stores some images, in a thread of the executor; worker: the name of this process;
    attempt: 1 for the chunk's first; scorers: see Shelf; flow: taken for each batch until it is
    stored; meter: counts each batch; taken: requests so far; settled: job id → status of those
    whose images are stored.
    """

    storage: Storage
    executor: Executor
    shard: int
    worker: str
    attempt: int
    scorers: tuple[str, ...] = ()
    flow: Semaphore = field(default_factory=lambda: Semaphore(IN_FLIGHT))
    meter: Meter = field(default_factory=Meter)
    taken: int = 0
    settled: dict[str, RecordStatus] = field(default_factory=dict)
    put: Put = Shelf.put_all
    _under_way: deque[Future[list[Record]]] = field(default_factory=deque)
    _records: list[Record] = field(default_factory=list)

    def take(self, batch: list[Rendered]) -> None:
        """Store a batch; waits while too many are under way.

        Raises:
            TransientError, FatalError: an earlier image could not be stored.
        """
        self.meter.note(batch)
        self.flow.acquire()
        while self._under_way and self._under_way[0].done():
            self._settle()
        key = batch[0].request.key
        is_local = self.storage.local_root is not None
        together = max(1, SMALL_PIXELS // (key.width * key.height)) if is_local else 1
        placed = [(one, self._path(one.request)) for one in batch]
        shelf = Shelf(self.storage, self.worker, self.attempt, self.scorers)
        stored = [
            self.executor.submit(
                copy_context().run, self.put, shelf, placed[start : start + together]
            )
            for start in range(0, len(batch), together)
        ]
        when_all_end(stored, self.flow.release)
        self._under_way.extend(stored)
        self.taken += len(batch)

    def records(self) -> list[Record]:
        """The records since the last call; waits until every image is in storage.

        Raises:
            TransientError, FatalError: an image could not be stored.
        """
        while self._under_way:
            self._settle()
        records, self._records = self._records, []
        return records

    def _settle(self) -> None:
        records = self._under_way.popleft().result()
        self._records.extend(records)
        self.settled |= {record.request.job_id: record.status for record in records}

    def _path(self, request: Request) -> str:
        return layout.image(self.shard, request.job_id, request.format)


def when_all_end(futures: Sequence[Future[Any]], call: Callable[[], None]) -> None:
    """Have something done once the last of some futures has ended; there is at least one."""
    left, lock = len(futures), Lock()

    def ended(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            call()

    for future in futures:
        future.add_done_callback(ended)
