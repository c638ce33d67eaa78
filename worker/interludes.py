"""Calls between two steps of a run's batch: whoever waits for one image never waits for sixteen."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

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


@dataclass
class Lookout:
    """What is looked out for while a batch renders: calls that wait, and when its end is near.

    One thread calls `look` all the time. With one of its own, each batch would wait for a start and
    an end of threads, which take milliseconds where many threads are at work.
    """

    claims: Claims
    _due: Event = field(default_factory=Event)
    _models: Collection[str] = ()
    _errand: tuple[float, Callable[[], None]] | None = None  # when (monotonic seconds), and what

    def look(self) -> None:
        """Raises redis.RedisError when Redis is away."""
        errand, models = self._errand, self._models
        if errand and time.monotonic() >= errand[0]:
            self._errand = None
            errand[1]()
        if self.claims.any_waits(models):
            self._due.set()

    @contextmanager
    def interlude(
        self,
        models: Collection[str],
        serve: Callable[[], bool],
        act: Callable[[], None] | None = None,
        at: float = 0.0,
    ) -> Iterator[Interlude]:
        """Look out for calls of some models while the block runs.

        act: what is to be done at a moment, in monotonic seconds, unless the block ends before.
        """
        self._due.clear()
        self._models, self._errand = models, (at, act) if act else None
        try:
            yield Interlude(self._due, serve)
        finally:
            self._models, self._errand = (), None
