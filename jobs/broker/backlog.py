"""What is on its way: the messages that wait in the queues, and those that a worker holds.

<prefix>idle                   set: "<run id> <epoch>" of runs that had none at the last look
<prefix>quarantine             list: messages that were put aside (jobs/broker/messages.py)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import cast

import redis

from jobs.broker import messages
from jobs.broker.messages import Message
from jobs.broker.queues import BULK, FEEDS
from jobs.broker.runs import Runs

PAGE = 256  # messages that are read at a time

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
        for message in self._messages():
            if message.task != messages.WAKE:
                yield message.arguments[0], message.arguments[1]

    def _messages(self) -> Iterator[Message]:
        """Those of ours; whoever takes another one puts it aside."""
        for kind in (BULK, FEEDS):
            for queue in self.client.scan_iter(
                match=f"{self.prefix}{kind}.*", count=1000, _type="LIST"
            ):
                for raw in self._page_by_page(queue):
                    with suppress(ValueError):
                        yield messages.parse(raw)
        for _, held in self.client.hscan_iter(f"{self.prefix}unacked", count=PAGE):
            with suppress(ValueError):
                yield messages.parse_held(held)

    def _page_by_page(self, queue: bytes) -> Iterator[bytes]:
        """A queue's messages, from the end where new ones come in, so that none is passed over."""
        for start in count(0, PAGE):
            page = cast("list[bytes]", self.client.lrange(queue, start, start + PAGE - 1))
            yield from page
            if len(page) < PAGE:
                return
