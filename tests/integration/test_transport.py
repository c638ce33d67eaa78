"""What a worker does with messages that the broker does not take back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from jobs.broker.app import make_app
from jobs.broker.connection import connect
from jobs.broker.dispatch import Dispatcher, wake_message
from jobs.broker.messages import WAKE, parse
from jobs.broker.queues import BULK, INTERACTIVE, queue_name
from jobs.broker.seals import NO_SEAL
from jobs.settings import Settings
from tests.sites import queue_chunks


@pytest.fixture
def client(broker: str) -> Iterator[redis.Redis]:
    client = connect(Settings(broker=broker))
    yield client
    client.config_set("maxmemory", 0)


@pytest.mark.parametrize("how", ["ack", "requeue"])
def test_a_refused_message_is_left_to_its_lease(client: redis.Redis, broker: str, how: str) -> None:
    settings = Settings(broker=broker)
    queue_chunks(Dispatcher(client, settings.key_prefix, NO_SEAL), "run", 1, 0, "m", [0])
    with make_app(settings).connection() as connection:
        channel = connection.default_channel
        message = channel.basic_get(queue_name(BULK, "m"))
        assert channel.qos.held == [message.delivery_tag]
        client.config_set("maxmemory", 1)
        if how == "ack":  # which Redis takes also then
            message.ack()
        else:
            message.requeue()
        client.config_set("maxmemory", 0)
        left = client.hlen(f"{settings.key_prefix}unacked")
        assert left == (1 if how == "requeue" else 0)
        assert not channel.qos.held
        channel.qos.restore_by_tag(message.delivery_tag)
    assert client.llen(f"{settings.key_prefix}{queue_name(BULK, 'm')}") == left


@pytest.mark.parametrize("how", ["ack", "requeue", "close"])
def test_a_wake_is_held_without_a_lease(client: redis.Redis, broker: str, how: str) -> None:
    settings = Settings(broker=broker)
    queue = queue_name(INTERACTIVE, "m")
    name = f"{settings.key_prefix}{queue}"
    client.lpush(name, wake_message("m", NO_SEAL))
    with make_app(settings).connection() as connection:
        channel = connection.default_channel
        message = channel.basic_get(queue)
        assert not client.exists(name, f"{settings.key_prefix}unacked")
        assert not channel.qos.held
        if how == "ack":
            message.ack()
        elif how == "requeue":
            message.requeue()
    left = [parse(raw, NO_SEAL, queue).task for raw in client.lrange(name, 0, -1)]
    assert left == ([] if how == "ack" else [WAKE])
