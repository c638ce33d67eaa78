"""The Celery parent of one device: receives messages and hands them to its one pool process.

Imports no torch: the pool process alone does, while this one connects to the broker.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import warnings
from typing import Any

from celery.bootsteps import StartStopStep
from celery.platforms import SecurityWarning
from celery.signals import setup_logging
from celery.worker import state

from jobs.broker.app import make_app, make_queues
from jobs.broker.fleet import Worker
from jobs.settings import load_settings
from worker.process.leases import Leases
from worker.process.maintenance import Maintenance
from worker.process.reading import Reading

STOP_SIGNAL = signal.SIGUSR2  # to the pool process: stop after the batch that is rendering
READY_SIGNAL = signal.SIGUSR2  # from the pool process: it has started


class StopPool(StartStopStep):  # type: ignore[misc]
    """Tells the pool process that the worker is closing, so that its chunk ends after a batch."""

    requires = ("celery.worker.components:Pool",)

    def close(self, worker: Any) -> None:
        for process in worker.pool._pool._pool:
            os.kill(process.pid, STOP_SIGNAL)


class PoolWatch(StartStopStep):  # type: ignore[misc]
    """Looks after the pool process every second; Celery does so every five.

    A chunk whose process has died goes back. If the process dies while it starts, the worker ends,
    where Celery would try again for ever: the supervisor starts it with a growing delay, and gives
    up after some times.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self.starting: set[int] = set()
        self.ready = False
        self.timer: Any = None
        signal.signal(READY_SIGNAL, self.note)

    def note(self, *_: object) -> None:
        """A process has started. Without this one that dies of its first chunk would count too."""
        self.ready = True

    def start(self, consumer: Any) -> None:
        """Begin to watch; called again after each reconnection."""
        if self.timer:
            self.timer.cancel()
        self.timer = consumer.timer.call_repeatedly(1.0, self.look, (consumer.pool._pool,))

    def look(self, pool: Any) -> None:
        """Compare the processes that start with those that started a moment ago."""
        pool.maintain_pool()
        if self.starting - {process.pid for process in pool._pool}:
            if not self.ready:
                state.should_stop = 1  # the exit code
            self.ready = False
        self.starting = {process.pid for process in pool._waiting_to_start}


def serve(device: str, kind: str, models: list[str]) -> int:
    """Work until SIGTERM; returns the exit code. `device` names the worker, `kind` is cpu or cuda.

    The first of the models is loaded at once.
    """
    settings = load_settings()
    host = socket.gethostname()
    name = f"{device}-{os.getpid()}@{host}"
    # A container's only user is often root, and messages are JSON: nothing to warn about.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signal.signal(READY_SIGNAL, signal.SIG_IGN)  # until there is someone to note it
    app = make_app(settings, include=["worker.tasks"])
    app.conf.update(
        task_queues=make_queues(models),
        imagemill_worker=name,
        imagemill_device=kind,
        imagemill_models=models,
    )
    app.steps["worker"].add(StopPool)
    app.steps["consumer"].update({Leases, Maintenance, PoolWatch, Reading})
    worker = app.Worker(
        hostname=name,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        settings=settings,
        worker=Worker(name, tuple(models), kind, host, os.getpid()),
    )
    worker.start()
    return int(worker.exitcode or 0)


@setup_logging.connect  # type: ignore[untyped-decorator]
def log_plainly(**_: object) -> None:
    """Log to stderr, in the parent and the pool process alike; of Celery only what is wrong."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(processName)s: %(message)s"
    )
    for noisy in ("celery", "kombu", "httpx", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    device, kind, *models = sys.argv[1:]
    sys.exit(serve(device, kind, models))
