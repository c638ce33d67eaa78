"""Which workers live: each device process says so every few seconds, in Redis.

<prefix>worker:<name>          JSON of a Worker; expires when its process is gone
"""

from __future__ import annotations

from dataclasses import dataclass

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
        self.client.set(self._key(worker.name), orjson.dumps(worker), ex=EXPIRE_SECONDS)

    def forget(self, worker: Worker) -> None:
        """Say that a worker ended."""
        self.client.delete(self._key(worker.name))

    def workers(self) -> list[Worker]:
        """The workers that live, by name."""
        keys = sorted(self.client.scan_iter(match=self._key("*"), count=1000))
        values = self.client.mget(keys) if keys else []
        return [_WORKER.validate_json(value) for value in values if value is not None]

    def _key(self, name: str) -> str:
        return f"{self.prefix}worker:{name}"
