"""Broker URLs, as redis-py takes them. Real servers: tests/integration/test_connection.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from jobs.broker.app import make_app
from jobs.broker.connection import Broker
from jobs.broker.transport import transport_options
from jobs.settings import Settings

GROUP = (
    "sentinels://imagemill:p%40ss@one:1,two/3?master_name=mill&ssl_ca_certs=/ca.pem"
    "&sentinel_username=asks&sentinel_password=whisper"
)


def test_a_group_by_tls() -> None:
    pool = Broker(Settings(broker=GROUP)).pool()
    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "mill"
    assert pool.connection_class is SentinelManagedSSLConnection
    wanted = {"username": "imagemill", "password": "p@ss", "db": 3, "ssl_ca_certs": "/ca.pem"}
    assert wanted.items() <= pool.connection_kwargs.items()
    assert "host" not in pool.connection_kwargs
    sentinels = [one.connection_pool for one in pool.sentinel_manager.sentinels]
    places = [(one.connection_kwargs["host"], one.connection_kwargs["port"]) for one in sentinels]
    assert places == [("one", 1), ("two", 26379)]
    for one in sentinels:
        assert one.connection_class is redis.SSLConnection
        wanted = {"username": "asks", "password": "whisper", "ssl_ca_certs": "/ca.pem"}
        assert wanted.items() <= one.connection_kwargs.items()


def test_an_event_loop_has_the_same() -> None:
    for url in (GROUP, "redis://host", "rediss://host", "redis+socket:///a.sock"):
        broker = Broker(Settings(broker=url))
        pool, other = broker.pool(), broker.pool_async()
        assert pool.connection_class.__name__ == other.connection_class.__name__
        for name in ("db", "host", "password", "path", "ssl_ca_certs", "socket_timeout"):
            assert pool.connection_kwargs.get(name) == other.connection_kwargs.get(name)


def test_workers_check_certificates_as_producers_do() -> None:
    made = transport_options(Settings(broker="rediss://host/2"))["broker"].pool().make_connection()
    assert (made.db, made.host) == (2, "host")
    assert made.cert_reqs.name == "CERT_REQUIRED"


def test_no_password_is_repeated(tmp_path: Path) -> None:
    assert "p@ss" not in repr(Broker(Settings(broker=GROUP)))
    file = Broker(Settings(broker=GROUP, broker_password_file=tmp_path / "password"))
    assert "password" not in file.options


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("redis://user:secret@127.0.0.1:1/0", "redis://**@127.0.0.1:1/0"),
    ],
)
def test_a_worker_names_the_broker_that_it_was_given(url: str, shown: str) -> None:
    """As it does when it cannot connect."""
    assert make_app(Settings(broker=url)).connection_for_read().as_uri() == shown
