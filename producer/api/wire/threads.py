"""Blocking work beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(
    action: Callable[[*Ts], T], *args: *Ts, threads: anyio.CapacityLimiter | None = None
) -> T:
    """Run what would block the event loop. When the caller is cancelled it is left to itself."""
    return await anyio.to_thread.run_sync(action, *args, abandon_on_cancel=True, limiter=threads)
