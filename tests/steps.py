"""Steps of a day with a GPU that go wrong in every way (tests/integration/test_gpu_day.py)."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.gpu.step import Day, Notes
from jobs.errors import FatalError


def tells(day: Day, notes: Notes) -> None:
    notes.tell(device=day.device)
    notes.row("rows", number=1)
    notes.row("rows", number=2)


def raises(_: Day, notes: Notes) -> None:
    notes.tell(half=1)
    raise ZeroDivisionError("of the test")


def refuses(_: Day, __: Notes) -> None:
    raise FatalError("bytes differ")


def dies(_: Day, notes: Notes) -> None:
    notes.tell(half=1)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(_: Day, notes: Notes) -> None:
    notes.tell(half=1)
    time.sleep(600)
