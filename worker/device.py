"""The device process: at several messages at a time, of which one has the device.

Each message but a wake has a thread of its own, which prepares and ends it; whatever touches a
model runs in one other thread, always the same, one after the other.
"""

from __future__ import annotations

import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any

import redis

from jobs import traces
from jobs.broker.fleet import Worker
from jobs.broker.heartbeat import heartbeat
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE
from jobs.calls.claims import RENEW_SECONDS
from jobs.children import die_with_parent
from jobs.errors import ImagemillError
from jobs.logs import PROCESS_TEXT, about, log_to_stderr
from jobs.settings import load_settings
from worker.accounts import WRITE_SECONDS
from worker.counts import REPORT_SECONDS
from worker.interludes import LOOK_SECONDS
from worker.process.pool import MOST_HELD, STOP, Word
from worker.storehouse import Storehouse
from worker.tasks import TASKS, PutBack
from worker.workshop import Workshop, make_workshop

# What the arguments of a message are called in logs.
IDS = {
    RENDER: ("run", "epoch", "shard", "chunk"),
    FEED: ("run", "epoch", "model"),
    FINALIZE: ("run", "epoch"),
    WAKE: (),
}

log = logging.getLogger(__name__)


@dataclass
class Device:
    """The process's end of the connection."""

    shop: Workshop
    connection: Connection
    _lock: Lock = field(default_factory=Lock)

    def prepare(self) -> None:
        """Load the first model before the first message asks for it."""
        try:
            self.shop.renderers.get(self.shop.models[0])
        except ImagemillError as error:
            log.error("%s", error)  # a run that needs this model will say it again
        self.say("ready", "")

    def serve(self) -> None:
        """Take messages until the parent closes the connection."""
        loading = self.shop.device.submit(self.prepare)
        loading.add_done_callback(self._end_if_broken)
        threads = ThreadPoolExecutor(MOST_HELD, thread_name_prefix="message")
        while True:
            try:
                name, task, arguments = self.connection.recv()
            except (EOFError, OSError):
                return
            if name == STOP:
                self.shop.stopping.set()
            elif task == WAKE:  # there is nothing to prepare: a thread between would cost time
                self.shop.device.submit(self.do, name, task, arguments)
                self.say("next", name)
            else:
                threads.submit(self.do, name, task, arguments)

    def do(self, name: str, task: str, arguments: list[Any]) -> None:
        """Do what a message asks for, and say what becomes of it."""
        try:
            with about(**dict(zip(IDS[task], arguments, strict=True))):
                TASKS[task](self.shop, lambda: self.say("next", name), *arguments)
        except PutBack:
            self.say("back", name)
        except BaseException:
            log.exception("A message was dropped: %s%r", task, tuple(arguments))
            self.say("done", name)
        else:
            self.say("done", name)

    def say(self, word: Word, name: str) -> None:
        """Tell the parent. If it is gone, so are we."""
        with self._lock:
            self.connection.send((word, name))

    def _end_if_broken(self, loading: Any) -> None:
        if loading.exception():
            log.error("The device does not start", exc_info=loading.exception())
            os._exit(1)


def work(connection: Connection, worker: Worker) -> None:
    """The life of a device process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    settings = load_settings()
    log_to_stderr(settings.log_format, PROCESS_TEXT)
    storehouse = Storehouse(connection, worker.device)  # it forks, so it comes before all threads
    shop = make_workshop(worker, storehouse.put, storehouse.score)
    traces.set_up(settings.traces, "imagemill-worker")
    with (
        heartbeat("look-out", LOOK_SECONDS, shop.lookout.look),
        heartbeat("claims on calls", RENEW_SECONDS, shop.claims.renew),
        heartbeat("counts", REPORT_SECONDS, shop.report),
        heartbeat("accounts of calls", WRITE_SECONDS, shop.accounts.write),
    ):
        Device(shop, connection).serve()
        shop.settle()
    shop.accounts.write()
    with suppress(redis.RedisError):
        shop.report()
    traces.flush()
    os._exit(0)  # all messages have ended: no thread is worth waiting for, such as one that loads
