"""What this process has done and has not reported yet, for jobs/broker/counters.py."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import redis

from jobs.broker.counters import CODES, OTHER, Counters, Series
from jobs.output.records import Record
from worker.interludes import Interlude

REPORT_SECONDS = 2.0


class Counts:
    """Sums by series. Many threads may count.

    models: those that have series of their own: the models table's. Repositories and folders, which
    requests may name as well, would be without number.
    """

    def __init__(self, models: Collection[str] = ()) -> None:
        self._models = frozenset(models)
        self._lock = Lock()
        self._sums: defaultdict[Series, float] = defaultdict(float)
        self._adapters: dict[str, str] = {}

    def batch(self, model: str, adapter: str, calls: Sequence[int]) -> None:
        """A batch of a model went through the device; `calls`: the slots of each pipeline call."""
        before = self._adapters.get(model, adapter)
        self._adapters[model] = adapter
        with self._lock:
            self._add("batches", model, amount=len(calls))
            self._add("slots", model, amount=sum(calls))
            self._add("adapter_switches", model, amount=before != adapter)

    def record(self, record: Record) -> None:
        """A request has ended."""
        model, spent = record.request.key.model, record.timings
        code = record.code if record.code in CODES or not record.code else OTHER
        with self._lock:
            self._add("requests", model, record.status, *([code] if code else []))
            self._add("stored_bytes", model, amount=record.bytes)
            self._add("seconds", model, "inputs", amount=spent.load)
            self._add("seconds", model, "encode", amount=spent.encode)
            self._add("seconds", model, "store", amount=spent.store)

    def once(self, name: str, model: str) -> None:
        """Something happened: "model_loads", "model_drops", "storage_errors"."""
        with self._lock:
            self._add(name, model)

    @contextmanager
    def timed(self, model: str, stage: str, but: Interlude | None = None) -> Iterator[None]:
        """Count the seconds of the block, but those of an interlude, for a stage of a model.

        Whatever becomes of it.
        """
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started - (but.seconds if but else 0.0)
            with self._lock:
                self._add("seconds", model, stage, amount=seconds)

    def report(self, counters: Counters) -> None:
        """Hand over what has been counted since the last report.

        Raises:
            redis.RedisError: Redis is away; the next report tells it.
        """
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        try:
            if sums:
                counters.add(sums)
        except redis.RedisError:
            with self._lock:
                for series, amount in sums.items():
                    self._sums[series] += amount
            raise

    def _add(self, name: str, model: str, *labels: str, amount: float = 1) -> None:
        if amount:
            self._sums[name, model if model in self._models else OTHER, *labels] += amount
