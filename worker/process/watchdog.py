"""Ends this process when a batch hangs, as a native call can that never returns."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """If the block takes longer, print where each thread stands and exit at once.

    Its timer is a thread outside Python, so it also ends a call that holds the interpreter.
    """
    # File 2, as Celery puts a logger in the place of sys.stderr.
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
