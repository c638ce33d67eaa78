"""Connections to Redis (or Valkey), made without connecting.

redis://[user:password@]host:port/db    one server, or a name that moves on failover
rediss://…                              the same by TLS; ?ssl_ca_certs=… as redis-py writes it
redis+socket:///path                    one on this machine
sentinel://[user:password@]host:port,host:port,…/db?master_name=NAME
                                        of a group the one that its sentinels call the primary;
                                        ?sentinel_username=…&sentinel_password=… for their own ACL
sentinels://…                           the same by TLS, to sentinels and servers
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.credentials import CredentialProvider
from redis.retry import Retry

from jobs.errors import FatalError
from jobs.settings import SENTINELS, Settings, sentinel_hosts

# A half-open connection is noticed within seconds; the defaults hang after a partition.
SOCKET_TIMEOUTS: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 3,
}
# Sentinels are asked one after the other, and one that is away must not hold up the next.
SENTINEL_TIMEOUTS: dict[str, Any] = {
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "retry": Retry(NoBackoff(), 0),
}
_ONCE_ASYNC: dict[str, Any] = {"retry": AsyncRetry(NoBackoff(), 0)}

_ASYNC = {
    redis.Connection: redis.asyncio.Connection,
    redis.SSLConnection: redis.asyncio.SSLConnection,
    redis.UnixDomainSocketConnection: redis.asyncio.UnixDomainSocketConnection,
    redis.sentinel.SentinelManagedConnection: redis.asyncio.sentinel.SentinelManagedConnection,
    redis.sentinel.SentinelManagedSSLConnection: (
        redis.asyncio.sentinel.SentinelManagedSSLConnection
    ),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Servers of which one is the primary. options: of connections to their sentinels."""

    name: str
    sentinels: list[tuple[str, int]]
    options: dict[str, Any]


class Broker:
    """How to reach the installation's server.

    kind: redis-py's class of connections to it; options: theirs; group: the one it is of, if any;
    shown: its URL as messages may show it.
    """

    def __init__(self, settings: Settings) -> None:
        url = settings.broker.replace("redis+socket://", "unix://", 1)
        scheme = urlsplit(url).scheme
        self.shown = without_password(settings.broker)
        self.group: Group | None = None
        if scheme in SENTINELS:
            self.kind, self.options, self.group = _of_group(url, secure=scheme == SENTINELS[1])
        else:
            self.options = _parse_url(url)
            self.kind = self.options.pop("connection_class", redis.Connection)
        self.options = SOCKET_TIMEOUTS | self.options
        if self.kind is redis.UnixDomainSocketConnection:
            del self.options["socket_keepalive"]  # a TCP matter; redis-py refuses it here
        elif file := settings.broker_password_file:  # a private broker's socket has none
            self.options.pop("password", None)
            user = self.options.pop("username", "")
            self.options["credential_provider"] = PasswordFile(user, file)

    def __repr__(self) -> str:
        # Without passwords: kombu tells connection pools apart by it.
        return f"Broker({self.kind.__name__}, {self.group and self.group.name})"

    def pool(self, **changes: Any) -> redis.ConnectionPool:
        """Connections. changes: to their options, or another `connection_class`."""
        options: dict[str, Any] = {"connection_class": self.kind, "redis_connect_func": _greet}
        options |= self.options | changes
        if self.group is None:
            return redis.ConnectionPool(**options)
        sentinels = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            self.group.sentinels, sentinel_kwargs=self.group.options
        )
        return _GroupPool(self.group.name, sentinels, **options)  # type: ignore[no-untyped-call]

    def pool_async(self) -> redis.asyncio.ConnectionPool:
        """The same for an event loop, to any kind of server: redis-py hides the greeting there."""
        options: dict[str, Any] = {"connection_class": _ASYNC[self.kind], **self.options}
        if self.group is None:
            return redis.asyncio.ConnectionPool(**options)
        sentinels = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            self.group.sentinels, sentinel_kwargs=self.group.options | _ONCE_ASYNC
        )
        return _AsyncGroupPool(self.group.name, sentinels, **options)  # type: ignore[no-untyped-call]


class _GroupPool(redis.sentinel.SentinelConnectionPool):
    """Ends its connections to the sentinels with those to the server."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:
            self.sentinel_manager.close()


class _AsyncGroupPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """The same for an event loop."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


def _of_group(url: str, secure: bool) -> tuple[type[Any], dict[str, Any], Group]:
    """What a sentinel URL says: class and options of connections to the primary, and its group."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    own: dict[str, Any] = {
        name: query.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    name = query.pop("master_name")
    user, at, _ = parts.netloc.rpartition("@")
    options = _parse_url(f"redis://{user}{at}{parts.path}?{urlencode(query)}")
    if secure:
        own |= {key: value for key, value in options.items() if key.startswith("ssl_")}
        own["ssl"] = True
    kind = (
        redis.sentinel.SentinelManagedSSLConnection
        if secure
        else redis.sentinel.SentinelManagedConnection
    )
    return kind, options, Group(name, sentinel_hosts(url), SENTINEL_TIMEOUTS | own)


def _parse_url(url: str) -> dict[str, Any]:
    return dict(parse_url(url))  # type: ignore[no-untyped-call]


class PasswordFile(CredentialProvider):
    """A password that others renew: it is read for each connection."""

    def __init__(self, user: str, file: Path) -> None:
        self.user = user
        self.file = file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Raises redis.AuthenticationError if there is no such file."""
        try:
            password = self.file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise redis.AuthenticationError(f"broker_password_file: {error}") from error
        return (self.user, password) if self.user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """The same: a small file of this machine."""
        return self.get_credentials()


def connect(settings: Settings) -> redis.Redis:
    """A client of the installation's server."""
    return redis.Redis.from_pool(Broker(settings).pool())


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """The same for an event loop."""
    return redis.asyncio.Redis.from_pool(Broker(settings).pool_async())


def check_kind(settings: Settings) -> None:
    """See whether the server can be a broker; one that is away may come yet.

    Raises:
        FatalError: it is of a kind that cannot.
    """
    with suppress(redis.RedisError), connect(settings) as client:
        client.ping()


def _greet(connection: Any) -> None:
    connection.on_connect()
    if refusal := _refusal(connection.handshake_metadata):
        connection.disconnect()  # redis-py does so after errors of its own
        raise refusal


def _refusal(greeting: dict[bytes, bytes]) -> FatalError | None:
    """Why a server that greets like this cannot be the broker; None if it can."""
    match greeting.get(b"mode"):
        case b"cluster":
            return FatalError(
                "the broker is a Redis Cluster, which keeps keys of one operation on several "
                "servers",
                "Take one server with cluster mode disabled; against its loss, replicas with "
                "sentinels (sentinel://…, docs/06-broker.md) or a managed failover.",
            )
        case b"sentinel":
            return FatalError(
                "the broker is a sentinel, which knows the primary but keeps nothing",
                "Write sentinel://host:port,host:port/0?master_name=NAME (docs/06-broker.md).",
            )
    return None


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
