"""The parent's end of the device process: Celery's pool of one, which may be at several messages.

Celery's own pools give a process its next message when the last one is acknowledged, so a device
would wait at each end of a chunk: for its images and its part to be stored, for the next message,
for that chunk's shard. Here the device process says when a chunk nears its end; then one more
message is taken, and is made ready while the device still renders. Messages are acknowledged one by
one, when their work is stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pkgutil import resolve_name
from typing import Any, Literal

import orjson
from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import Reject
from celery.worker import state

from jobs.broker.fleet import Worker
from jobs.children import reason

MOST_HELD = 6  # messages; of these one renders, and one or two are stored or made ready
END_SECONDS = 5.0  # until a process that was told to end is killed

# What the device process says: it has started; a message's successor may be taken; a message is
# done, or is to go back.
Word = Literal["ready", "next", "done", "back"]
STOP = "stop"

log = logging.getLogger(__name__)


@dataclass
class _Held:
    """A message that the process is at, with what Celery wants to be called at its end."""

    done: Callable[[tuple[bool, None, float]], None]
    failed: Callable[[ExceptionInfo], None]
    makes_way: bool = False


class DevicePool(BasePool):  # type: ignore[misc]
    """One spawned process: CUDA and storage clients do not survive a fork."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.worker: Worker = self.app.conf.imagemill_worker
        self.hub: Any = None
        self.first, self.ready = True, False
        self.held: dict[str, _Held] = {}

    @property
    def num_processes(self) -> int:
        """How many messages may be held now: Celery takes no more."""
        if self.first and not self.ready:  # it may load for minutes, while others could render
            return 0
        # After a death there may be a BRPOP under way, which has taken a message already: not to
        # read its answer would leave the message with nobody.
        return min(1 + sum(one.makes_way for one in self.held.values()), MOST_HELD)

    def on_start(self) -> None:
        """Start the process."""
        self.ready = False
        context = get_context("spawn")
        self.connection, other_end = context.Pipe()
        self.process = context.Process(target=_work, args=(other_end, self.worker), name="Device")
        self.process.start()
        other_end.close()  # so that ours ends with the process
        if self.hub:
            self.hub.add_reader(self.connection, self.listen)

    def register_with_event_loop(self, hub: Any) -> None:
        """Called again after each reconnection."""
        self.hub = hub
        hub.add_reader(self.connection, self.listen)

    def on_apply(self, _: object, args: tuple[Any, ...], __: object, **calls: Any) -> None:
        """Hand over a message: (task, id, headers, body, …)."""
        task, name, _, body, *_ = args
        calls["accept_callback"](self.process.pid, time.monotonic())
        self.held[name] = _Held(calls["callback"], calls["error_callback"])
        with suppress(OSError):  # it has just died: whoever listens will notice
            self.connection.send((name, task, orjson.loads(body)[0]))

    def listen(self) -> None:
        """Hear what the process says, or that it is gone."""
        try:
            while self.connection.poll():
                self.hear(*self.connection.recv())
        except (EOFError, OSError):
            self.bury()

    def hear(self, word: Word, name: str) -> None:
        """Act on one word about one message."""
        if word == "ready":
            self.ready = True
        elif word == "next":
            if name in self.held:
                self.held[name].makes_way = True
        elif held := self.held.pop(name, None):
            if word == "done":
                held.done((False, None, 0.0))
            else:
                put_back(held)

    def bury(self) -> None:
        """The process has died: its messages go back, and another one starts.

        One that died before it was ready would do so for ever. Then the worker ends: its supervisor
        starts it with a growing delay, and gives up after some times.
        """
        if self.hub:
            self.hub.remove_reader(self.connection)
        self.connection.close()
        self.process.join(END_SECONDS)
        held, self.held = self.held, {}
        for one in held.values():
            put_back(one)
        if self._state != self.RUN:
            return
        log.error("The device process ended (%s)", reason(self.process.exitcode or 0))
        if self.ready:
            self.first = False
            self.on_start()
        else:
            state.should_stop = 1  # the exit code

    def on_close(self) -> None:
        """The worker is closing: chunks end after a batch."""
        with suppress(OSError):
            self.connection.send((STOP, "", []))

    def on_stop(self) -> None:
        """Wait for what the process is at, as long as the supervisor lets us."""
        try:
            while self.held and self.process.is_alive():
                if self.connection.poll(0.1):
                    self.listen()
                # Celery's loop has ended, but leases are to be renewed, and messages acknowledged.
                self.hub.fire_timers()
                for call in self.hub._pop_ready():
                    call()
        finally:  # or this process would wait for that one for ever
            self.connection.close()  # and so the process ends
            self.process.join(END_SECONDS)
            self.on_terminate()

    def on_terminate(self) -> None:
        """End the process now."""
        self.process.kill()


def put_back(held: _Held) -> None:
    """Have the message delivered again, to whoever is first."""
    try:
        raise Reject(requeue=True)
    except Reject:
        held.failed(ExceptionInfo())


def _work(connection: Connection, worker: Worker) -> None:
    # By name: this process is to stay free of all that the other one needs.
    resolve_name("worker.device:work")(connection, worker)
