"""Kombu's Redis transport, made steady: it outlives partitions and whatever lies in Redis.

<prefix>unacked, unacked_index    kombu's: what workers hold, and since when
<prefix>damaged:<name>            a key of another type that stood in kombu's way
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from queue import Empty
from typing import Any, TypeVar

import redis
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport.redis import Channel, PrefixedStrictRedis, QoS, Transport
from redis._parsers import _RESP3Parser
from redis._parsers.socket import SocketBuffer

from jobs.broker import messages
from jobs.broker.connection import SOCKET_TIMEOUTS, Broker, drop_endless
from jobs.broker.messages import Message
from jobs.broker.seals import NO_SEAL, Seal, make_seal
from jobs.settings import Settings

DAMAGED_SECONDS = 30 * 24 * 3600  # how long a key of another type is kept
MAX_VALUE = 2 * messages.MAX_BYTES  # bytes of a value that are kept: one more than that is too long

log = logging.getLogger(__name__)

T = TypeVar("T")


class SteadyQoS(QoS):
    """Gives the prefetch credit back even when Redis is away, and restores only what is ours.

    Kombu drops the credit only after Redis has answered, so one failed ack leaves a worker that
    lives on and consumes nothing; one that Redis refuses, as it has no memory left, ends the
    worker. The message itself stays in `unacked` and is delivered again by its lease.

    Wakes have no lease, which would cost each call two round trips: whoever waits sends the next.
    """

    channel: SteadyChannel

    def append(self, message: Any, delivery_tag: str) -> None:
        if message.headers["task"] == messages.WAKE:
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]
        else:
            self.channel.steadily(lambda: super(SteadyQoS, self).append(message, delivery_tag))  # type: ignore[no-untyped-call]

    def ack(self, delivery_tag: str) -> None:
        with self._giving_up(delivery_tag):
            if not self._is_wake(delivery_tag):
                self.channel.steadily(lambda: super(SteadyQoS, self).ack(delivery_tag))  # type: ignore[no-untyped-call]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        with self._giving_up(delivery_tag):
            self.channel.steadily(
                lambda: super(SteadyQoS, self).reject(delivery_tag, requeue=requeue)  # type: ignore[no-untyped-call]
            )

    @property
    def held(self) -> list[str]:
        """The messages whose leases are to be renewed, by their tags."""
        # Kombu forgets what is given up when the next message comes.
        return [tag for tag in self._delivered if tag not in self._dirty and not self._is_wake(tag)]

    def _is_wake(self, tag: str) -> bool:
        return tag in self._delivered and self._delivered[tag].headers["task"] == messages.WAKE

    @contextmanager
    def _giving_up(self, delivery_tag: str) -> Iterator[None]:
        try:
            yield
        except redis.ResponseError as error:
            log.warning("A message is left to its lease: %s", error)
        finally:
            self._quick_ack(delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Put back what nobody renews. A mutex that would not end by itself is nobody's."""
        with self.channel.conn_or_acquire() as client:
            drop_endless(
                client, self.channel.global_keyprefix + self.unacked_mutex_key,
                self.unacked_mutex_expire,
            )  # fmt: skip
        self.channel.steadily(
            lambda: super(SteadyQoS, self).restore_visible(*args, **options)  # type: ignore[no-untyped-call]
        )

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message that a worker held back into its queue, made anew."""
        seal = self.channel.seal

        def push(client: Any, message: Message) -> None:
            how = client.lpush if leftmost else client.rpush
            how(message.queue, messages.make(message, seal))

        def restore(pipe: Any) -> None:
            held = pipe.hget(self.unacked_key, tag)
            pipe.multi()
            self._remove_from_indices(tag, pipe)  # type: ignore[no-untyped-call]
            if held is None:
                return
            try:
                message = replace(messages.parse_held(held, seal), redelivered=True)
            except ValueError as error:
                log.error("A message that a worker held was put aside: %s", error)
                pipe.lpush(messages.QUARANTINE, messages.put_aside(held, "unacked", str(error)))
            else:
                push(pipe, message)

        with self.channel.conn_or_acquire(client) as connection:
            if self._is_wake(tag):
                queue = self._delivered[tag].delivery_info["routing_key"]
                push(connection, Message(messages.WAKE, (), queue))
            else:
                connection.transaction(restore, self.unacked_key)


class BoundedBuffer(SocketBuffer):
    """Of a value with more than MAX_VALUE bytes, that many and one are kept; the rest is dropped.

    Redis hands out a message before anybody can see its size.
    """

    def read(self, length: int, *args: Any, **options: Any) -> bytes:
        if length <= MAX_VALUE:
            return super().read(length, *args, **options)
        kept = super().read(MAX_VALUE + 1, *args, **options)
        left = length - len(kept)  # super() takes two bytes more, for the end of the line
        while left:
            passed = len(self._buffer.read(left))
            left -= passed
            if left:
                self._buffer.seek(0)
                self._buffer.truncate()
                self._read_from_socket(*args, **options)
        return kept


class BoundedParser(_RESP3Parser):
    """Reads what Redis answers through the buffer above."""

    def on_connect(self, connection: Any) -> None:
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._buffer = BoundedBuffer(
            connection._sock, self.socket_read_size, connection.socket_timeout
        )


class CheckedRedis(PrefixedStrictRedis):
    """Kombu's client. What it takes from a queue is made anew of checked fields.

    Messages that are not ours are put aside: to kombu there was none. It would let the worker die
    of some of them, drop others, and do what a third kind says.
    """

    def __init__(self, *args: Any, seal: Seal, **options: Any) -> None:
        self.seal = seal
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        found = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not found:
            return found
        queue, raw = found
        name = queue.decode()
        try:
            return queue, messages.make(messages.parse(raw, self.seal, name), self.seal)
        except ValueError as error:
            log.error("A message in %s was put aside: %s", name, error)
            self.lpush(messages.QUARANTINE, messages.put_aside(raw, name, str(error)))
            # The one command here that kombu gives no prefix.
            self.ltrim(self.global_keyprefix + messages.QUARANTINE, 0, messages.QUARANTINED - 1)
            return None


class SteadyChannel(Channel):
    """Kombu's Redis channel with the parts above. Keys of another type are put out of its way."""

    QoS = SteadyQoS
    from_transport_options = (*Channel.from_transport_options, "broker", "seal")  # type: ignore[assignment]
    broker: Broker
    seal = NO_SEAL

    def _get_pool(self, asynchronous: bool = False) -> Any:
        # Where the server is, jobs.broker.connection knows; kombu's own class of connections tells
        # its event loop when one has ended.
        self.connection_class = self.broker.kind
        kind = super()._connparams(asynchronous)["connection_class"]  # type: ignore[no-untyped-call]
        return self.broker.pool(connection_class=kind, parser_class=BoundedParser, protocol=3)

    def _get_client(self) -> Any:
        return partial(CheckedRedis, global_keyprefix=self.global_keyprefix, seal=self.seal)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._mend()
            raise Empty from error

    def _size(self, queue: str) -> Any:
        return self.steadily(lambda: super(SteadyChannel, self)._size(queue), queue)  # type: ignore[no-untyped-call]

    def steadily(self, action: Callable[[], T], *queues: str) -> T:
        """The result of an action, again after keys of another type are out of its way.

        queues: those of the action that the channel does not read yet.
        """
        try:
            return action()
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._mend(*queues)
            return action()

    def _mend(self, *queues: str) -> None:
        kinds = {self.unacked_key: "hash", self.unacked_index_key: "zset"}
        kinds |= dict.fromkeys((messages.QUARANTINE, *self.active_queues, *queues), "list")
        prefix = self.global_keyprefix
        with self.conn_or_acquire() as client:
            for name, kind in kinds.items():
                found = client.type(f"{prefix}{name}").decode()
                if found not in ("none", kind):
                    aside = f"{prefix}damaged:{name}:{time.time_ns()}"
                    log.error("%s%s is no %s but a %s: now %s", prefix, name, kind, found, aside)
                    client.rename(f"{prefix}{name}", aside)
                    client.expire(aside, DAMAGED_SECONDS)


class SteadyTransport(Transport):
    """Kombu's Redis transport with the channel above, which messages know by the URL given."""

    Channel = SteadyChannel

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]
        self._broker: Broker = client.transport_options["broker"]
        self.can_parse_url = True  # has kombu ask as_uri; of the class it would mean more

    def as_uri(self, *_: Any, **__: Any) -> str:
        """Which server it is, without passwords."""
        return self._broker.shown


def register_transport() -> str:
    """Make SteadyTransport known to kombu; returns its name there."""
    TRANSPORT_ALIASES["steady"] = f"{SteadyTransport.__module__}:{SteadyTransport.__name__}"
    return "steady"


def transport_options(settings: Settings) -> dict[str, Any]:
    """Kombu's options for a short lease, which worker/process/leases.py renews."""
    return SOCKET_TIMEOUTS | {  # kombu's loop times its own checks by them
        "broker": Broker(settings),
        "global_keyprefix": settings.key_prefix,
        "seal": make_seal(settings),
        "visibility_timeout": settings.visibility_timeout,
        "queue_order_strategy": "priority",
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 5,
    }
