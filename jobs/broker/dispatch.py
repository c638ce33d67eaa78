"""Sending messages: about 1 KB each, ids and numbers only.

A run is not poured into Redis. Each model of a run has one feed message, which goes round as long
as there are chunks to give out: a worker that finds its bulk queues empty takes one, and queues
some chunks of the run whose turn it is (jobs/broker/turns.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import redis

from jobs.broker.fleet import Fleet
from jobs.broker.keys import KEEP_SECONDS, run_key
from jobs.broker.messages import FEED, FINALIZE, WAKE, Message, make
from jobs.broker.queues import BULK, FEEDS, INTERACTIVE, WAITING, queue_name
from jobs.broker.runs import Runs
from jobs.broker.seals import Seal
from jobs.output.plan import Place, Plan
from jobs.output.records import chunks_done
from jobs.output.storage import Storage


@dataclass(frozen=True)
class Dispatcher:
    """Sends the messages of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str
    seal: Seal

    def feed(self, run_id: str, epoch: int, model: str, first: Place) -> None:
        """Have a run wait for turns of a model, from one of its chunks on."""
        queue = queue_name(FEEDS, model)
        key = f"{run_key(self.prefix, run_id)}:next"
        with self.client.pipeline() as pipe:
            pipe.hset(key, queue_name(BULK, model), f"{first[0]} {first[1]}")
            pipe.expire(key, KEEP_SECONDS)
            pipe.sadd(f"{self.prefix}{queue_name(WAITING, model)}", run_id)
            message = make(Message(FEED, (run_id, epoch, model), queue), self.seal)
            pipe.lpush(f"{self.prefix}{queue}", message)
            pipe.execute()

    def finalize(self, run_id: str, epoch: int, model: str) -> None:
        """Queue the writing of the dataset, on any queue that a worker of the run reads.

        It comes next: it needs no device, and whoever waits for the run has waited long enough.
        """
        queue = queue_name(BULK, model)
        message = make(Message(FINALIZE, (run_id, epoch), queue), self.seal)
        self.client.rpush(f"{self.prefix}{queue}", message)


def wake_message(model: str, seal: Seal) -> bytes:
    """What has a worker look for interactive calls; jobs.calls.waiting sends it."""
    return make(Message(WAKE, (), queue_name(INTERACTIVE, model)), seal)


def start_run(
    plan: Plan,
    storage: Storage,
    runs: Runs,
    dispatcher: Dispatcher,
    counts: tuple[int, int, int] | None = None,
) -> int | None:
    """Make a planned run live and send its feeds; also the whole of `resume`.

    counts: of a worker that has found out what the round after those that are complete needs, as
    Runs.open takes them. Without them such a round begins with a worker that does so.

    Returns the run's epoch; None if every chunk is done, and no image is to be scored, so that only
    the dataset is to be written.
    """
    done = chunks_done(storage, plan)
    last = plan.round_after(done)
    sizes: list[tuple[int, int]] = []
    first: dict[str, Place] = {}
    for number, shard in enumerate(plan.shards):
        for i, chunk in enumerate(shard.chunks):
            if last is not None and chunk.round > last:
                continue
            if (number, i) in done:
                sizes.append((plan.number(number, i), chunk.stop - chunk.start))
            else:
                first.setdefault(chunk.model, (number, i))
    # Whoever starts a run has mended what was amiss, or will be told again.
    Fleet(runs.client, runs.prefix).trust([*plan.fingerprints, plan.run_id])
    epoch = runs.open(plan, storage.uri, sizes, last, counts)
    if not first and not plan.scorers:
        return None
    if not first or (last and counts is None):
        dispatcher.finalize(plan.run_id, epoch, plan.models[0])
        return epoch
    for model, place in first.items():
        dispatcher.feed(plan.run_id, epoch, model, place)
    return epoch
