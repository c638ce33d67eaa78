"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(
    action: Callable[[*Ts], T], *args: *Ts, threads: anyio.CapacityLimiter | None = None
) -> T:
    """Run what would block the event loop. When the caller is cancelled it is left to itself."""
    return await anyio.to_thread.run_sync(action, *args, abandon_on_cancel=True, limiter=threads)


async def in_daemon(action: Callable[[*Ts], T], *args: *Ts, threads: anyio.CapacityLimiter) -> T:
    """As in_thread, for what waits for strangers: the end of the process does not wait with it."""
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(action(*args))
        except BaseException as error:
            done.set_exception(error)

    async with threads:
        done.set_running_or_notify_cancel()  # from now on nobody but the thread settles it
        Thread(target=work, daemon=True).start()
        return await asyncio.wrap_future(done)
