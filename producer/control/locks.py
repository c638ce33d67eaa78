"""Locks in Redis: two processes do not do the same work at once. Never the truth about who did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from jobs.broker.heartbeat import heartbeat

LOCK_SECONDS = 30.0  # after that another takes over from one that is gone


@contextmanager
def locked(
    client: redis.Redis, name: str, seconds: float = LOCK_SECONDS, wait: float = 0.0
) -> Iterator[bool]:
    """Whether nobody else holds the lock; holds it as long as the block runs.

    wait: seconds to try for. Raises redis.RedisError when Redis is away.
    """
    lock = client.lock(
        name, seconds, blocking=wait > 0, blocking_timeout=wait or None, thread_local=False
    )
    if not lock.acquire():
        yield False
        return
    try:
        with heartbeat(f"lock {name}", seconds / 3, lambda: lock.extend(seconds, replace_ttl=True)):
            yield True
    finally:
        with suppress(redis.RedisError):  # it was wiped, or is away
            lock.release()
