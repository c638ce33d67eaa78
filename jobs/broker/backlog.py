"""What is on its way: the messages that wait in the queues, and those that a worker holds.

<prefix>idle                   set: "<run id> <epoch>" of runs that had none at the last look
<prefix>quarantine             list: messages that were put aside (jobs/broker/messages.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import orjson
import redis

from jobs.broker import messages
from jobs.broker.app import BULK, FEEDS
from jobs.broker.runs import Runs

Live = tuple[str, int]  # a run and its epoch


@dataclass(frozen=True)
class Backlog:
    """The messages of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str

    def lost(self, runs: Runs, seconds: float) -> set[Live]:
        """Runs that nobody would ever finish, as their messages are gone.

        A run is lost if it had no message at two looks in a row, this one and the last within
        `seconds`: for a moment between two messages a healthy one has none either.
        """
        moving = set(self._moving())
        idle = {
            f"{run_id} {epoch}" for run_id, epoch in runs.live() if (run_id, epoch) not in moving
        }
        key = f"{self.prefix}idle"
        with self.client.pipeline() as pipe:
            pipe.smembers(key)
            pipe.delete(key)
            if idle:
                pipe.sadd(key, *idle)
                pipe.pexpire(key, int(seconds * 1000))
            before = cast("set[bytes]", pipe.execute()[0])
        lost = idle & {name.decode() for name in before}
        return {(run_id, int(epoch)) for run_id, epoch in map(str.split, lost)}

    def quarantined(self) -> int:
        """How many messages were put aside and are kept."""
        return int(self.client.llen(f"{self.prefix}{messages.QUARANTINE}"))

    def _moving(self) -> Iterator[Live]:
        for raw in self._messages():
            try:
                task, arguments = messages.parse(raw)
            except ValueError:
                continue  # whoever takes it puts it aside
            if task != messages.WAKE:
                yield arguments[0], arguments[1]

    def _messages(self) -> Iterator[bytes]:
        for kind in (BULK, FEEDS):
            for queue in self.client.scan_iter(match=f"{self.prefix}{kind}.*", count=1000):
                yield from cast("list[bytes]", self.client.lrange(queue, 0, -1))
        for held in cast("list[bytes]", self.client.hvals(f"{self.prefix}unacked")):
            yield orjson.dumps(orjson.loads(held)[0])
