"""Which workers live: each device process says so every few seconds, in Redis.

<prefix>worker:<name>          JSON of a Worker; expires when its process is gone
<prefix>workers                set: names, those of some that are gone among them
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import orjson
import redis
from pydantic import TypeAdapter

EXPIRE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Worker:
    """One device process. `name` is unique; `models` are the names of the queues it reads."""

    name: str
    models: tuple[str, ...]
    device: str
    host: str
    pid: int


_WORKER = TypeAdapter(Worker)


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
            pipe.delete(self._key(worker.name))
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
        return [_WORKER.validate_json(report) for report in reports.values() if report is not None]

    @property
    def _names(self) -> str:
        return f"{self.prefix}workers"

    def _key(self, name: str) -> str:
        return f"{self.prefix}worker:{name}"
