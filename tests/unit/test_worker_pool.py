"""The parent's end of a device process, which may be at several messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import redis
from celery.exceptions import Reject
from celery.worker import state

from jobs.broker.fleet import Worker
from worker.process import pool as module
from worker.process.pool import MOST_HELD, DevicePool


@dataclass
class Celery:
    """What Celery would do about each message, and its event loop."""

    happened: list[str] = field(default_factory=list)
    readers: set[Any] = field(default_factory=set)
    renewed: int = 0

    def add_reader(self, connection: Any, _: object) -> None:
        self.readers.add(connection)

    def remove_reader(self, connection: Any) -> None:
        self.readers.remove(connection)

    def fire_timers(self) -> None:
        self.renewed += 1

    def _pop_ready(self) -> set[Any]:
        return set()

    def calls(self, name: str) -> dict[str, Any]:
        def failed(info: Any) -> None:
            assert isinstance(info.exception.exc, Reject)
            assert info.exception.exc.requeue
            self.happened.append(f"{name} back")

        return {
            "accept_callback": lambda *_: None,
            "callback": lambda _: self.happened.append(f"{name} done"),
            "error_callback": failed,
        }


class Echo(DevicePool):
    """A pool whose process does as it is told by the arguments of its messages."""

    def give(self, celery: Celery, name: str, *orders: str) -> None:
        body = orjson.dumps([orders, {}, {}])
        self.apply_async(None, ("task", name, {}, body, "", ""), **celery.calls(name))

    def until(self, count: int, heard: list[str]) -> list[str]:
        while len(heard) < count:
            assert self.connection.poll(20)
            self.listen()
        return heard


def obey(connection: Any, _: Worker) -> None:
    """The device process: says it is ready, then what each message holds."""
    connection.send(("ready", ""))
    while True:
        try:
            name, _, orders = connection.recv()
        except EOFError:
            return
        for order in orders:
            if order == "die":
                raise SystemExit(3)
            connection.send((order, name))


def die(*_: object) -> None:
    """A device process that never gets ready."""
    raise SystemExit(3)


@pytest.fixture
def celery() -> Celery:
    return Celery()


@pytest.fixture
def pool(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Echo]:
    monkeypatch.setattr(module, "_work", obey)
    monkeypatch.setattr(state, "should_stop", None)
    app = SimpleNamespace(
        conf=SimpleNamespace(
            imagemill_worker=Worker(name="w", models=(), device="cpu", host="h", pid=1)
        )
    )
    pool = Echo(app=app)
    pool.start()
    pool.register_with_event_loop(celery)
    yield pool
    pool.terminate()
    pool.process.join()


def ready(pool: Echo) -> None:
    while not pool.ready:
        assert pool.connection.poll(20)
        pool.listen()


def test_no_message_before_it_is_ready(pool: Echo) -> None:
    """It may load for minutes, while another worker could render."""
    assert pool.num_processes == 0
    ready(pool)
    assert pool.num_processes == 1


def test_one_more_message_when_a_chunk_nears_its_end(pool: Echo, celery: Celery) -> None:
    ready(pool)
    pool.give(celery, "a", "next")
    assert pool.connection.poll(20)
    pool.listen()
    assert pool.num_processes == 2
    pool.give(celery, "b", "done")
    pool.until(1, celery.happened)
    assert celery.happened == ["b done"]  # and "a" is still under way
    assert pool.num_processes == 2


def test_never_more_than_so_many(pool: Echo, celery: Celery) -> None:
    ready(pool)
    for number in range(MOST_HELD + 2):
        pool.give(celery, str(number), "next")
    while sum(held.makes_way for held in pool.held.values()) < MOST_HELD + 2:
        assert pool.connection.poll(20)
        pool.listen()
    assert pool.num_processes == MOST_HELD


def test_all_messages_of_a_dead_process_go_back_and_another_one_starts(
    pool: Echo, celery: Celery
) -> None:
    ready(pool)
    pool.give(celery, "a", "next")
    pool.give(celery, "b", "die")
    assert sorted(pool.until(2, celery.happened)) == ["a back", "b back"]
    assert len(celery.readers) == 1
    assert pool.num_processes == 1  # else what a BRPOP under way has taken would lie in no queue
    ready(pool)
    pool.give(celery, "c", "back")
    assert pool.until(3, celery.happened)[-1] == "c back"
    assert state.should_stop is None


def test_one_that_dies_while_it_starts_ends_the_worker(
    pool: Echo, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor starts it again with a growing delay."""
    ready(pool)
    monkeypatch.setattr(module, "_work", die)
    pool.give(celery, "a", "die")
    pool.until(1, celery.happened)
    assert state.should_stop is None
    while state.should_stop is None:
        assert pool.connection.poll(20)
        pool.listen()
    assert state.should_stop == 1


def test_it_waits_for_what_is_under_way_and_keeps_the_leases(pool: Echo, celery: Celery) -> None:
    ready(pool)
    pool.close()
    pool.give(celery, "a", "next", "done")
    pool.stop()
    assert celery.happened == ["a done"]
    assert celery.renewed
    assert not pool.process.is_alive()


def test_its_process_ends_even_if_the_broker_refuses_what_becomes_of_a_message(
    pool: Echo, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise redis.ResponseError("MISCONF")

    ready(pool)
    monkeypatch.setattr(celery, "fire_timers", refuse)
    pool.give(celery, "a")
    with pytest.raises(redis.ResponseError):
        pool.stop()
    assert not pool.process.is_alive()
