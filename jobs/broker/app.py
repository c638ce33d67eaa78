"""The Celery application of a worker. Producers need none: jobs.broker.dispatch writes messages."""

from __future__ import annotations

from collections.abc import Iterable

from celery import Celery
from kombu.entity import Exchange, Queue

from jobs.broker.queues import queue_names
from jobs.broker.transport import register_transport, transport_options
from jobs.settings import Settings


def make_app(settings: Settings, include: Iterable[str] = ()) -> Celery:
    """The application. `include` names the modules that define tasks."""
    app = Celery("imagemill", include=list(include), set_as_current=False)
    app.conf.update(
        broker_url=f"{register_transport()}://broker",  # where that is, the transport's options say
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
        # No more messages than the pool says (worker/process/pool.py).
        worker_disable_prefetch=True,
        worker_concurrency=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Anyone who reaches Redis could otherwise stop workers.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
    )
    return app


def make_queues(models: Iterable[str]) -> list[Queue]:
    """The queues of a worker that serves these models, in strict order of priority."""
    # The nameless exchange needs no binding in Redis, which a flush would lose.
    return [
        Queue(name, Exchange(""), routing_key=name)  # type: ignore[no-untyped-call]
        for name in queue_names(models)
    ]
