"""Connections to Redis (or Valkey), made without connecting."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio

from jobs.settings import Settings

# A half-open connection is noticed within seconds; the defaults hang after a partition.
SOCKET_TIMEOUTS: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 3,
}


def connect(settings: Settings) -> redis.Redis:
    """A client of the installation's server."""
    url, options = address(settings)
    return redis.Redis.from_url(url, **options)


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """The same for an event loop."""
    url, options = address(settings)
    return redis.asyncio.Redis.from_url(url, **options)


def address(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The server's URL as redis-py writes it, and the options of a connection."""
    url = settings.broker.replace("redis+socket://", "unix://", 1)
    options = dict(SOCKET_TIMEOUTS)
    if url.startswith("unix://"):
        del options["socket_keepalive"]  # a TCP matter; redis-py refuses it here
    return url, options


def drop_endless(client: redis.Redis, lock: str, seconds: float) -> None:
    """Remove a lock that would outlast the `seconds` that ours have: somebody else made it."""
    left = int(client.pttl(lock))
    if left == -1 or left > seconds * 1000:
        client.unlink(lock)  # kombu would give DEL a prefix of its own


def without_password(url: str) -> str:
    """A broker's URL as messages may show it."""
    parts = urlsplit(url)
    shown = url.partition("?")[0] + ("?**" if parts.query else "")  # it may hold one as well
    secret, at, _ = parts.netloc.rpartition("@")
    return shown.replace(f"{secret}{at}", "**@", 1) if at else shown
