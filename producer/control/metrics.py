"""What Prometheus is told of an installation, asked of its broker when somebody scrapes.

Nothing is kept between two scrapes, and any number of exporters tell the same. A scrape takes nine
round trips, however many runs, workers and messages there are. Labels hold names of the models
table, codes and states: never ids, prompts or paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import redis
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from jobs.broker.backlog import Backlog
from jobs.broker.counters import CODES, OTHER, STAGES, Counters, Series
from jobs.broker.fleet import Fleet
from jobs.calls.call import CallKeys
from jobs.errors import UsageError
from jobs.models.table import ModelTable
from producer.control.installation import Installation

PREFIX = "imagemill_"
MEASURED_REQUESTS = 8  # of a model, until its own pace counts and not the guess of the models table
RUN_STATES = ("running", "paused", "cancelled", "finished")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter that workers keep: its name in Redis, what its labels are, what it means."""

    name: str
    labels: tuple[str, ...]
    help: str


COUNTED = (
    Counted("requests", ("model", "status", "code"), "Requests that have ended, by what with."),
    Counted("seconds", ("model", "stage"), "Seconds in each stage; of render and load, device's."),
    Counted("batches", ("model",), "Pipeline calls."),
    Counted("slots", ("model",), "Requests that pipeline calls had room for, padding included."),
    Counted("stored_bytes", ("model",), "Bytes of images that were stored."),
    Counted("storage_errors", ("model",), "Images that storage did not take, tried for a minute."),
    Counted("model_loads", ("model",), "Times that a model was loaded."),
    Counted("model_drops", ("model",), "Times that a model was dropped to make room."),
    Counted("adapter_switches", ("model",), "Batches with another adapter than the one before."),
    Counted("chunk_retries", (), "Attempts at chunks beyond the first."),
    Counted("chunk_deaths", (), "Attempts at chunks that no worker has ended."),
    Counted("schedule_begun", (), "Nominal times of schedules whose runs have begun."),
    Counted("schedule_lag_seconds", (), "Seconds from those nominal times to the beginning."),
    Counted("schedule_failures", (), "Nominal times that failed, as schedules count failures."),
    Counted("verified_images", (), "Images that imagemill verify has rendered again."),
    Counted("verify_mismatches", (), "Those of them whose bytes were others."),
)
_PUBLIC = {"seconds": "stage_seconds"}  # names that mean nothing without their labels' names


@dataclass(frozen=True, eq=False)  # the registry knows it as itself
class InstallationMetrics:
    """A collector of prometheus_client."""

    known: Installation
    table: ModelTable

    def collect(self) -> Iterator[Metric]:
        """All metrics; without a broker only that there is none."""
        try:
            metrics = list(self._ask())
        except redis.RedisError as error:
            log.warning("The broker was not asked for metrics: %s", error)
            metrics = []
        yield _gauge("broker_up", "Whether the broker answers.", [((), float(bool(metrics)))])
        yield from metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that to register this asks nobody."""
        return ()

    def _ask(self) -> Iterator[Metric]:
        client, prefix = self.known.runs.client, self.known.runs.prefix
        sums = Counters(client, prefix).read(
            [series for one in COUNTED for series in self._series(one)]
        )
        for one in COUNTED:
            family = CounterMetricFamily(
                PREFIX + _PUBLIC.get(one.name, one.name), one.help, labels=one.labels
            )
            for series in self._series(one):
                labels = (*series[1:], "")[: len(one.labels)]
                family.add_metric(labels, sums[series])
            yield family
        yield from self._workers()
        yield from self._waiting(sums)
        held, aside = client.hlen(f"{prefix}unacked"), Backlog(client, prefix).quarantined()
        yield _gauge("held_messages", "Messages that workers are at.", [((), int(held))])
        yield _gauge("quarantined_messages", "Messages that were put aside.", [((), aside)])

    @property
    def _models(self) -> list[str]:
        return [*self.table.models, OTHER]

    def _series(self, one: Counted) -> list[Series]:
        if not one.labels:
            return [(one.name,)]
        if one.name == "seconds":
            return [(one.name, model, stage) for model in self._models for stage in STAGES]
        if one.name == "requests":
            ends = [("done",), *((status, code) for code, status in CODES.items())]
            ends += [("rejected", OTHER), ("failed", OTHER)]
            return [(one.name, model, *end) for model in self._models for end in ends]
        return [(one.name, model) for model in self._models]

    def _workers(self) -> Iterator[Metric]:
        workers = Fleet(self.known.runs.client, self.known.runs.prefix).workers()
        unfit = sum(bool(worker.unfit) for worker in workers)
        states = [(("ready",), len(workers) - unfit), (("unfit",), unfit)]
        told = "Workers that live; unfit: that cannot render some of their models for now."
        yield _gauge("workers", told, states, "state")
        serving = [
            ((model,), sum(model in worker.serves for worker in workers))
            for model in self.table.models
        ]
        yield _gauge("serving_workers", "Workers that can render a model.", serving, "model")
        used, whole = (sum(worker.memory[i] for worker in workers) for i in (0, 1))
        yield _gauge(
            "device_memory_bytes", "Memory of the GPUs of all workers.",
            [(("used",), used), (("total",), whole)], "state",
        )  # fmt: skip
        ratios = [worker.memory[0] / worker.memory[1] for worker in workers if worker.memory[1]]
        yield _gauge(
            "device_memory_fullest_ratio", "Used memory of the fullest GPU, of all of its own.",
            [((), max(ratios, default=0.0))],
        )  # fmt: skip

    def _waiting(self, sums: dict[Series, float]) -> Iterator[Metric]:
        states, left = self.known.runs.outstanding()
        yield _gauge(
            "runs", "Runs that the broker knows, by state.",
            [((state,), states[state]) for state in RUN_STATES], "state",
        )  # fmt: skip
        bulk = dict.fromkeys(self._models, 0)
        for model, requests in left.items():
            bulk[model if model in bulk else OTHER] += requests
        keys = CallKeys(self.known.runs.prefix)
        with self.known.runs.client.pipeline(transaction=False) as pipe:
            for model in self.table.models:
                pipe.zcard(keys.waiting(model))
            calls = dict(zip(self.table.models, cast("list[int]", pipe.execute()), strict=True))
        waiting = [((model, "bulk"), requests) for model, requests in bulk.items()]
        waiting += [((model, "interactive"), requests) for model, requests in calls.items()]
        labels = ("model", "kind")
        yield _gauge(
            "outstanding_requests", "Requests that wait or are being rendered.", waiting, *labels
        )
        yield _gauge(
            "outstanding_device_seconds", "What they will take of one device, about.",
            [(at, requests * self._pace(at[0], sums)) for at, requests in waiting], *labels,
        )  # fmt: skip

    def _pace(self, model: str, sums: dict[Series, float]) -> float:
        """Seconds that a request of a model takes: measured, else the models table's guess."""
        ended = sum(sums[one] for one in self._series(COUNTED[0]) if one[1] == model)
        if ended >= MEASURED_REQUESTS:
            return sums["seconds", model, "render"] / ended
        found = self.table.models.get(model)
        return found.seconds_per_image if found else 1.0


def make_registry(known: Installation, table: ModelTable) -> CollectorRegistry:
    """What an exporter or the facade tells, and nothing of the process that tells it."""
    registry = CollectorRegistry()
    registry.register(InstallationMetrics(known, table))
    return registry


def serve_metrics(
    registry: CollectorRegistry, host: str, port: int, ready: Callable[[str], None]
) -> None:
    """Answer scrapes until interrupted; `ready` is told the URL.

    Raises:
        UsageError: the address is taken.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}", "Choose --port.") from error
    name = f"[{host}]" if ":" in host else host
    ready(f"http://{name}:{server.server_port}/metrics")
    with suppress(KeyboardInterrupt):
        thread.join()
    server.shutdown()


def _gauge(
    name: str, told: str, values: Sequence[tuple[tuple[str, ...], float]], *labels: str
) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, told, labels=labels)
    for at, value in values:
        family.add_metric(at, value)
    return family
