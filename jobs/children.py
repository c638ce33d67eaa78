"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import parent_process
from typing import IO

from jobs.errors import UsageError

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that the kernel kills when this process is gone, even by kill -9.

    environment: all of it; log: takes what the program prints, else our own stdout and stderr do.

    Raises:
        UsageError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UsageError("workers and the private broker need Linux", "Start them there.")
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        env=environment,
        start_new_session=True,  # Ctrl-C in the terminal is for us alone
        preexec_fn=_before_exec(),
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a started program and everything that it started, now."""
    with suppress(ProcessLookupError):  # the whole group is gone already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def reason(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def die_with_parent() -> None:
    """Have the kernel kill this very process, a child of multiprocessing, when its parent is gone;
    end at once if that is gone already. Linux only."""
    _ask_kernel()
    parent = parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)


def _ask_kernel() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _before_exec() -> Callable[[], None]:
    """What a child does before it becomes another program."""
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what we wait for, it may handle
        _ask_kernel()
        if os.getppid() != parent:  # it is gone already
            os._exit(1)

    return prepare
