"""The Celery parent of one device: receives messages and hands them to its one device process.

Imports no torch: the device process alone does, while this one connects to the broker.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings

from celery.platforms import SecurityWarning
from celery.signals import setup_logging

from jobs.broker.app import make_app, make_queues
from jobs.broker.fleet import Worker
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE
from jobs.logs import PROCESS_TEXT, log_to_stderr
from jobs.settings import load_settings
from worker.process.leases import Leases
from worker.process.maintenance import Maintenance
from worker.process.pool import MOST_HELD
from worker.process.reading import Reading


def serve(device: str, kind: str, models: list[str]) -> int:
    """Work until SIGTERM; returns the exit code. `device` names the worker, `kind` is cpu or cuda.

    The first of the models is loaded at once. The worker reports itself before that.
    """
    settings = load_settings()
    # In the place of Celery's own.
    log_to_stderr(settings.log_format, PROCESS_TEXT)
    setup_logging.connect(_set_up, weak=False)
    host = socket.gethostname()
    name = f"{device}-{os.getpid()}@{host}"
    # A container's only user is often root, and messages are JSON: nothing to warn about.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    member = Worker(name, tuple(models), kind, host, os.getpid())
    app = make_app(settings)
    app.conf.update(
        task_queues=make_queues(models),
        worker_pool="worker.process.pool:DevicePool",
        worker_prefetch_multiplier=MOST_HELD,  # the pool says how many of them now
        imagemill_worker=member,
    )
    for task in (RENDER, FEED, FINALIZE, WAKE):
        app.task(_done_elsewhere, name=task)
    app.steps["consumer"].update({Leases, Maintenance, Reading})
    worker = app.Worker(
        hostname=name,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        settings=settings,
        worker=member,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", "") if kind == "cuda" else "",
    )
    worker.start()
    return int(worker.exitcode or 0)


def _set_up(**_: object) -> None:
    """Logging is set up already; Celery leaves it alone as somebody listens."""


def _done_elsewhere(*_: object) -> None:
    """Celery wants to know all tasks by name; the device process does them (worker/tasks.py)."""


if __name__ == "__main__":
    device, kind, *models = sys.argv[1:]
    sys.exit(serve(device, kind, models))
