"""The Celery application: names, queues and settings that producers and workers share.

Messages are JSON and carry ids and numbers only. Tasks have explicit names, so that a producer can
send them without importing the worker.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b

from celery import Celery
from kombu.entity import Exchange, Queue

from jobs.broker.connection import register_transport, transport_options
from jobs.settings import Settings

BULK = "bulk"
FEEDS = "feed"
INTERACTIVE = "interactive"


def make_app(settings: Settings, include: Iterable[str] = ()) -> Celery:
    """The application. `include` names the modules that define tasks; only a worker has some."""
    app = Celery("imagemill", include=list(include), set_as_current=False)
    transport = register_transport()
    app.conf.update(
        broker_url=settings.broker.replace("redis+socket://", f"{transport}+socket://", 1),
        broker_transport=transport,
        broker_transport_options=transport_options(settings),
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=False,
        # A message is acknowledged when its work is in storage, and goes back if a process dies.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # One process a device. Spawned, because CUDA and storage clients do not survive a fork.
        worker_pool="prefork",
        worker_concurrency=1,
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=600,
        worker_lost_wait=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Anyone who reaches Redis could otherwise stop workers.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return app


def queue_name(kind: str, model: str) -> str:
    """The queue of a model. Names that are not plain (repositories, folders) become a hash."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", model):
        model = "x-" + blake2b(model.encode(), digest_size=8).hexdigest()
    return f"{kind}.{model}"


def make_queue(kind: str, model: str) -> Queue:
    """The queue of a kind of message for a model."""
    name = queue_name(kind, model)
    # The nameless exchange needs no binding in Redis, which a flush would lose.
    return Queue(name, Exchange(""), routing_key=name)  # type: ignore[no-untyped-call]


def queues(models: Iterable[str]) -> list[Queue]:
    """The queues of a worker that serves these models, in strict order of priority."""
    served = list(models)
    return [make_queue(kind, model) for kind in (INTERACTIVE, BULK, FEEDS) for model in served]
