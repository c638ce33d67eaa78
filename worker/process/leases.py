"""Renews what the Celery parent holds: the leases of its messages, and its own sign of life.

Kombu hands a message to another worker when its score in `unacked_index` is older than the
visibility timeout. Renewed every two seconds, a short timeout suits tasks of any length: the lease
of a living worker never runs out, and that of a dead host does so within the timeout.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import redis
from celery.bootsteps import StartStopStep

from jobs.broker.connection import connect
from jobs.broker.fleet import Fleet, Worker
from jobs.settings import Settings
from worker.process.gpus import memory

RENEW_SECONDS = 2.0
TELL_SECONDS = 0.2  # until others know that it is ready
CLOCK_SECONDS = 2.0  # clocks may differ by so much without a warning

log = logging.getLogger(__name__)


class Leases(StartStopStep):  # type: ignore[misc]
    """A step of the Celery consumer.

    settings, worker, visible: the worker's options; the last is its CUDA_VISIBLE_DEVICES.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(
        self, consumer: Any, settings: Settings, worker: Worker, visible: str, **options: Any
    ) -> None:
        super().__init__(consumer, **options)
        self.client = connect(settings)
        self.index = f"{settings.key_prefix}unacked_index"
        self.fleet = Fleet(self.client, settings.key_prefix)
        self.worker = worker
        self.visible = visible
        self.timer: Any = None
        self.teller: Any = None

    def start(self, consumer: Any) -> None:
        """Begin to renew; called again after each reconnection."""
        if self.timer:
            self.timer.cancel()
        self.timer = consumer.timer.call_repeatedly(RENEW_SECONDS, self.renew, (consumer,))
        self.renew(consumer)
        if self.teller:
            self.teller.cancel()
        self.teller = consumer.timer.call_repeatedly(TELL_SECONDS, self.tell, (consumer,))
        self._compare_clocks()

    def stop(self, consumer: Any) -> None:
        """Nothing: a task that still finishes while the worker stops keeps its lease."""

    def shutdown(self, _: Any) -> None:
        """The worker has ended, perhaps before it ever reached Redis."""
        for timer in filter(None, (self.timer, self.teller)):
            timer.cancel()
        with suppress(redis.RedisError):  # then its sign of life expires
            self.fleet.forget(self.worker)

    def renew(self, consumer: Any) -> None:
        """Give each message that is not acknowledged yet the score of a new one."""
        try:
            if held := consumer.task_consumer.channel.qos.held:
                # XX: never bring back a message that was acknowledged meanwhile.
                self.client.zadd(self.index, dict.fromkeys(held, time.time()), xx=True)
        except redis.RedisError as error:
            log.warning("Leases were not renewed: %s", error)
        # Apart: whatever is wrong with the one must not keep the other from being done.
        self._report(consumer)

    def tell(self, consumer: Any) -> None:
        """Say at once when the device process is ready, or is not any more."""
        if self.worker.ready != consumer.pool.ready:
            self._report(consumer)

    def _report(self, consumer: Any) -> None:
        worker = replace(self.worker, ready=consumer.pool.ready, memory=memory(self.visible))
        try:
            self.fleet.report(worker)
            self.worker = worker
        except redis.RedisError as error:
            log.warning("This worker could not say that it lives: %s", error)

    def _compare_clocks(self) -> None:
        """Leases are compared with the clock of whoever looks at them."""
        try:
            seconds, micros = self.client.time()
        except redis.RedisError:
            return  # the next reconnection compares again
        ahead = time.time() - seconds - micros / 1e6
        if abs(ahead) > CLOCK_SECONDS:
            log.warning(
                "This host's clock is %+.1f s off the broker's, so leases end early or late. "
                "Synchronise the clocks.",
                ahead,
            )
