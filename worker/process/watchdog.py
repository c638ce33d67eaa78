"""Ends this process when a batch hangs, as a native call can that never returns."""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Watchdog:
    """The one timer of this process, which is of one thread. Within a watched block another may be
    watched: the time of the outer one stands still meanwhile.
    """

    _ends: float | None = None  # in monotonic seconds

    @contextmanager
    def watch(self, seconds: float) -> Iterator[None]:
        """If the block takes longer, print where each thread stands and exit at once.

        The timer is a thread outside Python, so it also ends a call that holds the interpreter.
        """
        left = None if self._ends is None else self._ends - time.monotonic()
        self._set(seconds)
        try:
            yield
        finally:
            self._set(left)

    def _set(self, seconds: float | None) -> None:
        if seconds is None:
            self._ends = None
            faulthandler.cancel_dump_traceback_later()
        else:
            self._ends = time.monotonic() + seconds
            # It must be positive. File 2, as Celery puts a logger in the place of sys.stderr.
            faulthandler.dump_traceback_later(max(seconds, 0.001), exit=True, file=2)
