"""What a worker does with messages that the broker does not take back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from jobs.broker.app import make_app
from jobs.broker.connection import connect
from jobs.broker.dispatch import Dispatcher
from jobs.broker.queues import BULK, queue_name
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
