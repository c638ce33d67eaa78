"""Sending messages: about 1 KB each, ids and numbers only.

A run is not poured into Redis. Each model of a run has one feed message; a worker that finds its
bulk queues empty expands it into the next few chunk messages and sends the feed on, to the end of
its queue. So runs take turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import redis

from jobs.broker.fleet import Fleet
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE, Message, make
from jobs.broker.queues import BULK, FEEDS, INTERACTIVE, queue_name
from jobs.broker.runs import Runs
from jobs.broker.seals import Seal
from jobs.output.plan import Plan
from jobs.output.records import chunks_done
from jobs.output.storage import Storage

TOGETHER = 200  # messages a round trip: three times as fast as one by one


@dataclass(frozen=True)
class Dispatcher:
    """Sends the messages of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str
    seal: Seal

    def render(
        self, run_id: str, epoch: int, shard: int, model: str, chunks: Iterable[int]
    ) -> None:
        """Queue chunks of one shard."""
        queue = queue_name(BULK, model)
        self._send(
            queue, [Message(RENDER, (run_id, epoch, shard, chunk), queue) for chunk in chunks]
        )

    def feed(self, run_id: str, epoch: int, shard: int, model: str, chunk: int = 0) -> None:
        """Queue the expansion of a shard, from one of its chunks on."""
        queue = queue_name(FEEDS, model)
        self._send(queue, [Message(FEED, (run_id, epoch, shard, chunk, model), queue)])

    def finalize(self, run_id: str, epoch: int, model: str) -> None:
        """Queue the writing of the dataset, on any queue that a worker of the run reads.

        It comes next: it needs no device, and whoever waits for the run has waited long enough.
        """
        queue = queue_name(BULK, model)
        message = make(Message(FINALIZE, (run_id, epoch), queue), self.seal)
        self.client.rpush(f"{self.prefix}{queue}", message)

    def _send(self, queue: str, messages: list[Message]) -> None:
        for start in range(0, len(messages), TOGETHER):
            some = [make(message, self.seal) for message in messages[start : start + TOGETHER]]
            self.client.lpush(f"{self.prefix}{queue}", *some)


def wake_message(model: str, seal: Seal) -> bytes:
    """What has a worker look for interactive calls; jobs.calls.waiting sends it."""
    return make(Message(WAKE, (), queue_name(INTERACTIVE, model)), seal)


def start_run(plan: Plan, storage: Storage, runs: Runs, dispatcher: Dispatcher) -> int | None:
    """Make a planned run live and send its feeds; also the whole of `resume`.

    Returns the run's epoch; None if every chunk is done, so that only the dataset is to be written.
    """
    done = chunks_done(storage, plan)
    sizes: list[tuple[int, int]] = []
    first_shards: dict[str, int] = {}
    for number, shard in enumerate(plan.shards):
        for i, chunk in enumerate(shard.chunks):
            if (number, i) in done:
                sizes.append((plan.number(number, i), chunk.stop - chunk.start))
            else:
                first_shards.setdefault(chunk.model, number)
    # Whoever starts a run has mended what was amiss, or will be told again.
    Fleet(runs.client, runs.prefix).trust([*plan.fingerprints, plan.run_id])
    epoch = runs.open(plan, storage.uri, sizes)
    for model, first in first_shards.items():
        dispatcher.feed(plan.run_id, epoch, first, model)
    return epoch if first_shards else None


def next_shard(plan: Plan, after: int, model: str) -> int | None:
    """The next shard that has chunks of the model; None at the plan's end."""
    for number in range(after + 1, len(plan.shards)):
        if any(chunk.model == model for chunk in plan.shards[number].chunks):
            return number
    return None
