"""Which workers live: each device process says so every few seconds, in Redis.

<prefix>worker:<name>          JSON of a Worker; expires when its process is gone
<prefix>workers                set: names, those of some that are gone among them
<prefix>doing:<name>           JSON of a Doing
<prefix>unfit:<name>:<what>    why the worker cannot render a model, one of its adapters
                               ("model:adapter") or a run; expires when it is to try again
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import orjson
import redis
from pydantic import TypeAdapter

EXPIRE_SECONDS = 10
UNFIT_SECONDS = 120  # after that a worker tries again what it could not do
DOING_SECONDS = 24 * 3600  # longer than a chunk takes


@dataclass(frozen=True, slots=True)
class Doing:
    """What a worker renders, "" for nothing, and has loaded. since: Unix seconds."""

    run_id: str = ""
    model: str = ""
    loaded: tuple[str, ...] = ()
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One device process. `name` is unique; `models` are the names of the queues it reads.

    unfit: of these the ones that it does not read for now, as it cannot render them, and why;
    ready: it has loaded the first of its models, or found that it cannot; memory: bytes of its
    GPU's that are used, and all of them, 0 if unknown; doing: as of the last change.
    """

    name: str
    models: tuple[str, ...]
    device: str
    host: str
    pid: int
    unfit: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    memory: tuple[int, int] = (0, 0)
    doing: Doing = Doing()

    @property
    def serves(self) -> list[str]:
        """The models that it can render."""
        return [model for model in self.models if model not in self.unfit]


_WORKER, _DOING = TypeAdapter(Worker), TypeAdapter(Doing)


@dataclass(frozen=True)
class Fleet:
    """The workers of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str

    def report(self, worker: Worker) -> None:
        """Say that a worker lives, for the next EXPIRE_SECONDS."""
        with self.client.pipeline() as pipe:
            pipe.set(self._key(worker.name), orjson.dumps(worker), ex=EXPIRE_SECONDS)
            pipe.sadd(self._names, worker.name)
            pipe.execute()

    def forget(self, worker: Worker) -> None:
        """Say that a worker ended."""
        with self.client.pipeline() as pipe:
            pipe.delete(self._key(worker.name), self._doing(worker.name))
            pipe.srem(self._names, worker.name)
            pipe.execute()

    def workers(self) -> list[Worker]:
        """The workers that live, by name."""
        found = cast("set[bytes]", self.client.smembers(self._names))
        names = sorted(name.decode() for name in found)
        if not names:
            return []
        values = self.client.mget([self._key(name) for name in names])
        reports = dict(zip(names, values, strict=True))
        if gone := [name for name, report in reports.items() if report is None]:
            self.client.srem(self._names, *gone)  # one that lives comes back with its next report
        workers = [_WORKER.validate_json(report) for report in reports.values() if report]
        pairs = [(worker.name, one) for worker in workers for one in worker.models]
        keys = [self._doing(worker.name) for worker in workers]
        keys += [self._unfit(*pair) for pair in pairs]
        answers = cast("list[bytes | None]", self.client.mget(keys) if keys else [])
        unfit = _by_worker(pairs, answers[len(workers) :])
        doing = [_DOING.validate_json(raw) if raw else Doing() for raw in answers[: len(workers)]]
        return [
            replace(worker, unfit=unfit.get(worker.name, {}), doing=now)
            for worker, now in zip(workers, doing, strict=True)
        ]

    def tell(self, name: str, doing: Doing) -> None:
        """Say what a worker does."""
        self.client.set(self._doing(name), orjson.dumps(doing), ex=DOING_SECONDS)

    def give_up(self, name: str, what: str, reason: str) -> None:
        """Say that a worker cannot render something for now: a model, "model:adapter" or a run."""
        self.client.set(self._unfit(name, what), reason, ex=UNFIT_SECONDS)

    def unfit(self, name: str, whats: Sequence[str]) -> dict[str, str]:
        """What of these a worker cannot render, and why."""
        return self._reasons([(name, what) for what in whats]).get(name, {})

    def refusals(self, model: str, parts: Sequence[str]) -> dict[str, str] | None:
        """Why none of a model's workers can render it, or some parts of it, by their names.

        None if one of them can.
        """
        names = [worker.name for worker in self.workers() if model in worker.models]
        found = self._reasons([(name, what) for name in names for what in (model, *parts)])
        if any(name not in found for name in names):
            return None
        return {name: next(iter(found[name].values())) for name in names}

    def trust(self, whats: Iterable[str]) -> None:
        """Have all workers try again what they could not do."""
        names = [name.decode() for name in cast("set[bytes]", self.client.smembers(self._names))]
        if keys := [self._unfit(name, what) for what in whats for name in names]:
            self.client.delete(*keys)

    @property
    def _names(self) -> str:
        return f"{self.prefix}workers"

    def _reasons(self, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
        """Of pairs of a worker and what it may have given up: worker → what → why."""
        reasons = self.client.mget([self._unfit(*pair) for pair in pairs]) if pairs else []
        return _by_worker(pairs, cast("list[bytes | None]", reasons))

    def _doing(self, name: str) -> str:
        return f"{self.prefix}doing:{name}"

    def _unfit(self, name: str, what: str) -> str:
        return f"{self.prefix}unfit:{name}:{what}"

    def _key(self, name: str) -> str:
        return f"{self.prefix}worker:{name}"


def _by_worker(
    pairs: Sequence[tuple[str, str]], reasons: Sequence[bytes | None]
) -> dict[str, dict[str, str]]:
    """Of pairs of a worker and what it may have given up, and of each the reason, if it has one."""
    found: dict[str, dict[str, str]] = {}
    for (name, what), reason in zip(pairs, reasons, strict=True):
        if reason is not None:
            found.setdefault(name, {})[what] = reason.decode("utf-8", "replace")
    return found
