"""Finds runs whose messages were lost, so that none ever waits for a person.

Kombu takes a message from its queue and notes it as held in two steps; whatever dies between them
loses it. Storage knows what is missing, so a run without messages is just dispatched again.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import redis
from celery.bootsteps import StartStopStep

from jobs.broker.backlog import Backlog
from jobs.broker.connection import connect, drop_endless
from jobs.broker.dispatch import Dispatcher
from jobs.broker.fleet import Worker
from jobs.broker.runs import Runs
from jobs.broker.seals import make_seal
from jobs.settings import Settings

log = logging.getLogger(__name__)


class Maintenance(StartStopStep):  # type: ignore[misc]
    """A step of the Celery consumer; every worker has it, one of them at a time does the work."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, settings: Settings, worker: Worker, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.client = connect(settings)
        self.prefix = settings.key_prefix
        self.seal = make_seal(settings)
        self.seconds = settings.visibility_timeout  # no message is out of sight for longer
        self.worker = worker
        self.dispatcher = Dispatcher(self.client, self.prefix, self.seal)
        self.timer: Any = None

    def start(self, consumer: Any) -> None:
        """Begin to look; called again after each reconnection."""
        self.stop(consumer)
        # Jittered, so that many workers do not come at once.
        period = self.seconds * random.uniform(0.9, 1.1)
        self.timer = consumer.timer.call_repeatedly(period, self.look)

    def stop(self, _: Any) -> None:
        """The connection is gone, or the worker ends."""
        if self.timer:
            self.timer.cancel()

    def look(self) -> None:
        """Have the runs that lost their messages dispatched again, if it is this worker's turn."""
        turn = int(self.seconds * 900)  # ms; it ends by itself, before the next look
        try:
            drop_endless(self.client, f"{self.prefix}look", self.seconds)
            if not self.client.set(f"{self.prefix}look", self.worker.name, nx=True, px=turn):
                return
            lost = Backlog(self.client, self.prefix).lost(
                Runs(self.client, self.prefix, self.seal), 3 * self.seconds
            )
            for run_id, epoch in lost:
                log.warning("Run %s has lost its messages: dispatching it again", run_id)
                # Whoever takes it sees what storage lacks.
                self.dispatcher.finalize(run_id, epoch, self.worker.models[0])
        except redis.RedisError as error:
            log.warning("Runs were not looked after: %s", error)
