"""Calls between two steps of a run's batch: whoever waits for one image never waits for sixteen."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

from jobs.broker.heartbeat import heartbeat
from jobs.calls.claims import Claims

LOOK_SECONDS = 0.05  # while a batch renders, calls are looked for so often


class NoRoom(Exception):
    """The device's memory does not hold a call beside the batch under way."""


@dataclass
class Interlude:
    """What a batch makes way for between two of its steps.

    due: set once a call waits; serve: renders a batch of calls, false if none waits after all;
    seconds: that this took until now, and the batch did not.
    """

    due: Event
    serve: Callable[[], bool]
    seconds: float = 0.0
    _closed: bool = False

    def __call__(self) -> bool:
        """Make way if somebody waits. True if anything was rendered."""
        if self._closed or not self.due.is_set():
            return False
        self.due.clear()
        started = time.monotonic()
        try:
            return self.serve()
        except NoRoom:
            self._closed = True  # they wait for the end of the batch
            return True
        finally:
            self.seconds += time.monotonic() - started


@contextmanager
def interlude(
    claims: Claims, models: Collection[str], serve: Callable[[], bool]
) -> Iterator[Interlude]:
    """Look out for calls of some models while the block runs, in a thread."""
    due = Event()

    def look() -> None:
        if claims.any_waits(models):
            due.set()

    with heartbeat("look-out for calls", LOOK_SECONDS, look):
        yield Interlude(due, serve)
