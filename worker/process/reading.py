"""Which queues the parent reads: not those of models that its device process cannot render for now.

So messages and wakes of a model go to the workers that can, and a broken one attracts none.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery.bootsteps import StartStopStep

from jobs.broker.connection import connect
from jobs.broker.fleet import Fleet, Worker
from jobs.broker.queues import queue_names
from jobs.settings import Settings

LOOK_SECONDS = 1.0  # less than a message is held by a worker that cannot render it

log = logging.getLogger(__name__)


class Reading(StartStopStep):  # type: ignore[misc]
    """A step of the Celery consumer."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, settings: Settings, worker: Worker, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.fleet = Fleet(connect(settings), settings.key_prefix)
        self.worker = worker
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        """Begin to look; called again after each reconnection, when all queues are read."""
        self.stop(consumer)
        self.look(consumer)
        self.timer = consumer.timer.call_repeatedly(LOOK_SECONDS, self.look, (consumer,))

    def stop(self, _: Any) -> None:
        """The connection is gone, or the worker ends."""
        if self.timer:
            self.timer.cancel()

    def look(self, consumer: Any) -> None:
        """Read the queues of the models that are not given up, in their order."""
        try:
            unfit = self.fleet.unfit(self.worker.name, self.worker.models)
        except redis.RedisError as error:
            log.warning("Which queues to read is not known: %s", error)
            return
        fit = [model for model in self.worker.models if model not in unfit]
        # Kombu's own list for the next BRPOP. To cancel consumers would lose their order.
        consumer.task_consumer.channel._queue_cycle.update(queue_names(fit))
