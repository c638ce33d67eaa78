"""Other processes that work for this one."""

from __future__ import annotations

import fcntl
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from threading import Lock
from typing import Any, ParamSpec, Self, TypeVar

from jobs.children import die_with_parent, reason
from jobs.errors import FatalError

# What a pipe holds: most of a call or a result, or whoever sends one waits, every 64 kB, until a
# thread of a busy process has its turn. More than that Linux gives to root alone, as it comes.
PIPE_BYTES = 1 << 20

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class Helpers:
    """Processes that call functions for this one, whose arguments and results can be pickled.

    Each has a pipe of its own, so that one that is killed, even as it sends a result, is told at
    once; with one pipe for all, as ProcessPoolExecutor has it, nobody would learn that the rest of
    the result never comes.

    begin: is called in each at its start; ahead: calls that one is sent at a time, at least 1.
    """

    def __init__(self, count: int, begin: Callable[[], None], ahead: int = 1) -> None:
        # Started by this thread: the kernel takes the thread that starts a process for its parent.
        self._all = [_Helper(begin) for _ in range(count)]
        self._free: SimpleQueue[_Helper] = SimpleQueue()
        for helper in self._all * ahead:
            self._free.put(helper)
        self._threads = ThreadPoolExecutor(count * ahead, "helper")

    def submit(
        self, act: Callable[_Given, _Result], *args: _Given.args, **kwargs: _Given.kwargs
    ) -> Future[_Result]:
        """What it returns, or raises; FatalError if the process that was to call it has ended."""
        return self._threads.submit(self._call, act, args, kwargs)

    def _call(self, *call: Any) -> Any:
        helper = self._free.get_nowait()  # there are as many as threads
        try:
            return helper.call(call)
        finally:
            self._free.put(helper)

    @property
    def is_ready(self) -> bool:
        """Whether one of them has started, so that it calls at once."""
        return any(helper.is_ready for helper in self._all)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """What has begun is waited for, the rest is cancelled."""
        self._threads.shutdown(cancel_futures=True)
        for helper in self._all:
            helper.end()


class _Helper:
    def __init__(self, begin: Callable[[], None]) -> None:
        # Spawned: storage clients and their threads do not survive a fork.
        context = get_context("spawn")
        calls, self._calls = context.Pipe(duplex=False)
        self._results, results = context.Pipe(duplex=False)
        for pipe in (calls, results):
            _widen(pipe)
        self._process = context.Process(target=_serve, args=(calls, results, begin), daemon=True)
        # Ctrl-C is for all of a terminal's processes: one that still imports would print where.
        resource_tracker.ensure_running()  # or start() does, which lets SIGINT through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        calls.close()
        results.close()
        self._sending, self._receiving = Lock(), Lock()
        self._has_begun = False

    @property
    def is_ready(self) -> bool:
        return self._has_begun or self._results.poll()

    def call(self, call: Any) -> Any:
        """Wait for the result of a call, which may be sent while it is at an earlier one."""
        try:
            with self._sending:
                self._calls.send(call)
                self._receiving.acquire()  # before others send: results come in the calls' order
            try:
                if not self._has_begun:
                    self._results.recv()
                    self._has_begun = True
                succeeded, result = self._results.recv()
            finally:
                self._receiving.release()
        except (EOFError, OSError) as error:
            with self._sending:
                self._process.join()
            code = self._process.exitcode or 0
            hint = "Where memory is short, processes are killed: have more free, then try again."
            raise FatalError(
                f"a process that helped ended: {reason(code)}", hint if code < 0 else ""
            ) from error
        if not succeeded:
            raise result
        return result

    def end(self) -> None:
        self._calls.close()
        self._results.close()
        self._process.kill()  # it has no call any more, or is not even there yet
        self._process.join()


def _widen(pipe: Connection) -> None:
    if sys.platform == "linux":
        with suppress(OSError):  # of this user's pipes there are too many
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _serve(calls: Connection, results: Connection, begin: Callable[[], None]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    die_with_parent()
    begin()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see _Helper
    with suppress(EOFError, OSError):  # nobody waits for us any more
        results.send(None)
        while True:
            act, args, kwargs = calls.recv()
            try:
                answer = ForkingPickler.dumps((True, act(*args, **kwargs)))
            except Exception as error:
                answer = _failed(error)
            results.send_bytes(answer)


def _failed(error: Exception) -> memoryview:
    trace = traceback.format_exc()  # which is not pickled
    error.add_note(trace)
    try:
        return ForkingPickler.dumps((False, error))
    except Exception:  # it holds what cannot be sent
        return ForkingPickler.dumps((False, RuntimeError(trace)))
