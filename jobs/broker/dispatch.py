"""Sending messages: about 1 KB each, ids and numbers only.

A run is not poured into Redis. Each model of a run has one feed message; a worker that finds its
bulk queues empty expands the next plan shard into chunk messages and sends the feed on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import orjson
import redis
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from jobs.broker.app import BULK, FEEDS, INTERACTIVE, make_queue
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE, sign
from jobs.broker.runs import Runs
from jobs.errors import TransientError
from jobs.output.plan import Plan
from jobs.output.records import chunks_done
from jobs.output.storage import Storage


@dataclass(frozen=True)
class Dispatcher:
    """Sends a run's messages."""

    app: Celery

    def render(
        self, run_id: str, epoch: int, shard: int, model: str, chunks: Iterable[int]
    ) -> None:
        """Queue chunks of one shard.

        Raises:
            TransientError: the broker cannot be reached.
        """
        queue = make_queue(BULK, model)
        self._send(RENDER, queue, [(run_id, epoch, shard, chunk) for chunk in chunks])

    def feed(self, run_id: str, epoch: int, shard: int, model: str) -> None:
        """Queue the expansion of a shard."""
        self._send(FEED, make_queue(FEEDS, model), [(run_id, epoch, shard, model)])

    def finalize(self, run_id: str, epoch: int, model: str) -> None:
        """Queue the writing of the dataset, on any queue that a worker of the run reads."""
        self._send(FINALIZE, make_queue(BULK, model), [(run_id, epoch)])

    def wake_message(self, model: str, message_id: str) -> bytes:
        """What has a worker look for interactive calls, as Celery puts it into Redis.

        Not sent but made, for scripts that do more in the same step (jobs.calls.waiting):
        to send it takes 2 ms, a fifth of what a call costs.
        """
        queue = make_queue(INTERACTIVE, model)
        with Connection("memory://") as connection:  # type: ignore[no-untyped-call]
            self.app.send_task(
                WAKE, queue=queue, connection=connection, task_id=message_id, ignore_result=True
            )
            message = connection.default_channel._get(queue.name)
        message["properties"]["delivery_tag"] = message_id
        sign(message, self.app.conf.broker_transport_options["seal"])
        return orjson.dumps(message)

    def _send(self, task: str, queue: Queue, messages: list[tuple[object, ...]]) -> None:
        try:
            # One round trip for many messages: three times as fast as one by one.
            with self.app.producer_pool.acquire(block=True) as producer:
                with producer.batch(max_size=200):
                    for args in messages:
                        self.app.send_task(
                            task, args=args, queue=queue, producer=producer, ignore_result=True
                        )
        except (OperationalError, redis.RedisError) as error:
            raise TransientError(
                f"broker {self.app.connection().as_uri()} cannot be reached: {error}",
                "Start it, or check --broker.",
            ) from error


def start_run(plan: Plan, storage: Storage, runs: Runs, dispatcher: Dispatcher) -> int | None:
    """Make a planned run live and send its feeds; also the whole of `resume`.

    Returns the run's epoch; None if every chunk is done, so that only the dataset is to be written.
    """
    done = chunks_done(storage, plan.run_id)
    sizes: list[tuple[int, int]] = []
    first_shards: dict[str, int] = {}
    for number, shard in enumerate(plan.shards):
        for i, chunk in enumerate(shard.chunks):
            if (number, i) in done:
                sizes.append((plan.number(number, i), chunk.stop - chunk.start))
            else:
                first_shards.setdefault(chunk.model, number)
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
