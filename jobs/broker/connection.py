"""Connections to Redis (or Valkey): the transport options that Celery needs, and a plain client."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import redis
import redis.asyncio
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.redis import Channel, PrefixedStrictRedis, QoS, Transport

from jobs.broker import messages
from jobs.broker.seals import NO_SEAL, Seal, make_seal
from jobs.settings import Settings

log = logging.getLogger(__name__)

# A half-open connection is noticed within seconds; the defaults hang after a partition.
SOCKET_TIMEOUTS: dict[str, Any] = {
    "socket_timeout": 5,
    "socket_connect_timeout": 3,
    "socket_keepalive": True,
    "health_check_interval": 3,
}


class SteadyQoS(QoS):
    """Gives the prefetch credit back even when Redis is away.

    Kombu drops it only after Redis has answered, so one failed ack leaves a worker that lives on
    and consumes nothing. The message itself stays in `unacked` and is delivered again by its lease.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
        finally:
            self._quick_ack(delivery_tag)


class CheckedRedis(PrefixedStrictRedis):
    """Kombu's client, but messages that are not ours are put aside: to kombu there was none.

    Kombu would let the worker die of some of them, and drop the others.
    """

    def __init__(self, *args: Any, seal: Seal, **options: Any) -> None:
        self.seal = seal
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        found = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not found:
            return found
        queue, raw = found
        try:
            messages.parse(raw, self.seal)
        except ValueError as error:
            log.error("A message in %s was put aside: %s", queue.decode(), error)
            self.lpush(messages.QUARANTINE, messages.put_aside(raw, queue.decode(), str(error)))
            # The one command here that kombu gives no prefix.
            self.ltrim(self.global_keyprefix + messages.QUARANTINE, 0, messages.QUARANTINED - 1)
            return None
        return found


class SteadyChannel(Channel):
    """Kombu's Redis channel with the two above."""

    QoS = SteadyQoS
    from_transport_options = (*Channel.from_transport_options, "seal")  # type: ignore[assignment]
    seal = NO_SEAL

    def _get_client(self) -> Any:
        return partial(CheckedRedis, global_keyprefix=self.global_keyprefix, seal=self.seal)

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        messages.sign(message, self.seal)
        super()._put(queue, message, **options)  # type: ignore[no-untyped-call]


class SteadyTransport(Transport):
    """Kombu's Redis transport with the channel above."""

    Channel = SteadyChannel


def register_transport() -> str:
    """Make SteadyTransport known to kombu; returns its name there."""
    # By name, because kombu takes the transport of "name+socket:///path" from the URL alone.
    TRANSPORT_ALIASES["steady"] = f"{SteadyTransport.__module__}:{SteadyTransport.__name__}"
    return "steady"


def transport_options(settings: Settings) -> dict[str, Any]:
    """Kombu's options for a short lease, which worker/process/leases.py renews."""
    return SOCKET_TIMEOUTS | {
        "global_keyprefix": settings.key_prefix,
        "seal": make_seal(settings),
        "visibility_timeout": settings.visibility_timeout,
        "queue_order_strategy": "priority",
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }


def connect(settings: Settings) -> redis.Redis:
    """A plain client for the same server, made without connecting."""
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
