"""The claims on interactive calls, with a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import pytest
import redis

from jobs.broker.connection import connect, connect_async
from jobs.broker.fleet import Fleet, Worker
from jobs.broker.heartbeat import heartbeat
from jobs.broker.messages import WAKE, parse
from jobs.broker.queues import INTERACTIVE, queue_name
from jobs.broker.seals import NO_SEAL, Seal
from jobs.calls.call import Answer, Call, CallKeys, decode_answer, decode_call, encode_call
from jobs.calls.claims import Claims
from jobs.calls.waiting import CallLimits, CallQueue, QueueFull
from jobs.errors import FatalError
from jobs.settings import Settings
from tests.samples import make_key, make_request
from tests.support import eventually
from worker.accounts import Accounts
from worker.calls import serve_calls
from worker.faults import Fitness, Unfit
from worker.render import Rendered
from worker.storing import Shelf

KEYS = CallKeys("t:")
LIMITS = CallLimits(60, 7, 6)

T = TypeVar("T")


@pytest.fixture
def client(broker: str) -> redis.Redis:
    return connect(Settings(broker=broker))


def make_call(name: str, model: str = "null", width: int = 64) -> Call:
    key = make_key(task="edit", model=model, width=width, inputs=1)
    request = make_request(key=key, seed=2**64 - 1, images=("sha256:0",))
    return Call(id=name, team="team", request=request, out="/out", path=f"calls/{name}.png")


Put = Callable[[Call], None]


@pytest.fixture
def put(broker: str) -> Put:
    """Puts a call as a facade does; the next one is younger."""
    return lambda call: asyncio.run(_with_queue(broker, lambda queue: queue.put(call)))


async def _with_queue(
    broker: str, action: Callable[[CallQueue], Awaitable[T]], limits: CallLimits = LIMITS
) -> T:
    settings = Settings(broker=broker, key_prefix="t:")
    async with connect_async(settings) as connection:
        return await action(CallQueue(connection, "t:", limits, NO_SEAL))


def test_a_call_is_stored_by_names_as_every_version_reads_it() -> None:
    raw = encode_call(make_call("a"), NO_SEAL)
    assert orjson.loads(raw.partition(b" ")[2])["request"][2] == {
        "task": "edit", "model": "null", "adapter": "", "width": 64, "height": 64, "steps": 8,
        "guidance_scale": 3.0, "negative": False, "strength": None, "controlnet_weights": [],
        "inputs": 1, "slots": 0,
    }  # fmt: skip
    assert decode_call(raw, NO_SEAL) == make_call("a")
    call = orjson.loads(raw.partition(b" ")[2])
    call["request"][2] = list(call["request"][2].values())
    with pytest.raises(ValueError, match="stored by the names of its fields"):
        decode_call(b" " + orjson.dumps(call), NO_SEAL)


def test_oldest_first_and_only_what_fits_together(client: redis.Redis, put: Put) -> None:
    names = ["a", "b", "wide", "c", "d"]
    added = {name: make_call(name, width=128 if name == "wide" else 64) for name in names}
    put(make_call("first", "other"))
    for name in names:
        put(added[name])
    calls = Claims(client, "t:", NO_SEAL)
    slots = {"null": 3, "other": 1}
    taken = [[call.id for call in calls.take(slots)] for _ in range(5)]
    assert taken == [["first"], ["a", "b", "c"], ["wide"], ["d"], []]


def test_a_call_comes_back_as_it_was(client: redis.Redis, put: Put) -> None:
    call = make_call("a")
    put(call)
    assert Claims(client, "t:", NO_SEAL).take({"null": 4}) == [call]


def test_withdrawn_calls_are_dropped(client: redis.Redis, put: Put) -> None:
    put(make_call("a"))
    put(make_call("b", width=128))
    client.delete(KEYS.call("a"))
    assert [call.id for call in Claims(client, "t:", NO_SEAL).take({"null": 4})] == ["b"]
    assert client.zcard(KEYS.waiting("null")) == 1


def without_its_image(call: Call) -> Call:
    return replace(call, request=call.request._replace(images=()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b" {}",
        b"no seal",
        encode_call(make_call("a"), Seal(b"x")),
        encode_call(without_its_image(make_call("a")), Seal(b"secret")),
    ],
)
def test_a_call_of_somebody_else_is_dropped(client: redis.Redis, put: Put, body: bytes) -> None:
    seal = Seal(b"secret")
    for name in "ab":
        put(make_call(name))
    client.set(KEYS.call("a"), body)
    client.set(KEYS.call("b"), encode_call(make_call("b"), seal))
    assert Claims(client, "t:", seal).take({"null": 1}) == [make_call("b")]
    assert client.zscore(KEYS.waiting("null"), make_call("a").member) is None


def test_a_call_whose_workers_die_is_given_up(client: redis.Redis, put: Put) -> None:
    calls = Claims(client, "t:", NO_SEAL, seconds=0)
    for name in "ab":
        put(make_call(name))
    assert [call.id for call in calls.take({"null": 4})] == ["a", "b"]
    # From now on each goes alone, the oldest claim first.
    seen = [[call.id for call in calls.take({"null": 4})] for _ in range(4)]
    assert sorted(seen) == [["a"], ["a"], ["b"], ["b"]]
    assert calls.take({"null": 4}) == []
    for name in "ab":
        (row,) = client.lrange(KEYS.answer(name), 0, -1)
        assert decode_answer(row).code == "worker_died"


def test_claims_run_out_unless_they_are_kept(client: redis.Redis, put: Put) -> None:
    put(make_call("a"))
    mine, other = (Claims(client, "t:", NO_SEAL, seconds=0.6) for _ in range(2))
    taken = mine.take({"null": 1})
    with heartbeat("claims", 0.1, mine.renew), mine.keep(taken):
        score = client.zscore(KEYS.waiting("null"), taken[0].member)
        eventually(lambda: client.zscore(KEYS.waiting("null"), taken[0].member) > score + 0.7)
        assert other.take({"null": 1}) == []
    assert eventually(lambda: other.take({"null": 1}), 5) == taken


def test_one_answer_is_heard(client: redis.Redis, put: Put) -> None:
    call = make_call("a")
    put(call)
    calls = Claims(client, "t:", NO_SEAL)
    calls.take({"null": 1})
    first = Answer("done", seconds_render=1.5)
    calls.answer(call, first)
    calls.answer(call, Answer("failed", "late"))
    assert client.llen(KEYS.answer("a")) == 1
    assert decode_answer(client.lpop(KEYS.answer("a"))) == first  # type: ignore[arg-type]
    assert not client.exists(KEYS.waiting("null"), KEYS.call("a"))


@pytest.mark.parametrize("key", [KEYS.waiting("null"), KEYS.team("team")])
def test_an_answer_is_heard_whatever_lies_where_calls_wait(client: redis.Redis, key: str) -> None:
    client.hset(key, "not", "ours")
    with pytest.raises(redis.ResponseError):
        Claims(client, "t:", NO_SEAL).answer(make_call("a"), Answer("done"))
    assert decode_answer(client.lpop(KEYS.answer("a"))) == Answer("done")  # type: ignore[arg-type]


def test_a_call_wakes_workers_again_until_enough_wakes_lie_there(
    broker: str, client: redis.Redis
) -> None:
    """256 calls of two minutes each once left 15,000 wakes before whatever followed."""
    limits = replace(LIMITS, wake_seconds=0.05, wakes=3)
    call, name = make_call("a"), "t:" + queue_name(INTERACTIVE, "null")

    async def call_and_answer(queue: CallQueue) -> None:
        await queue.put(call)
        waiting = asyncio.create_task(queue.wait(call))
        while client.llen(name) < 3:
            await asyncio.sleep(0.01)
        client.rpop(name)
        while client.llen(name) < 3:  # whoever took one may have died of it
            await asyncio.sleep(0.01)
        await queue.put(make_call("b"))
        for _ in range(5):
            await queue.wake("null")
        assert client.llen(name) == 3
        Claims(client, "t:", NO_SEAL).answer(call, Answer("done"))
        assert (await waiting).status == "done"

    asyncio.run(_with_queue(broker, call_and_answer, limits))
    wakes = [parse(raw) for raw in client.lrange(name, 0, -1)]
    assert {(wake.task, wake.queue) for wake in wakes} == {(WAKE, "interactive.null")}
    assert len({wake.id for wake in wakes}) == 3


def test_so_many_calls_may_wait(client: redis.Redis, put: Put) -> None:
    for name in "abcdef":
        put(make_call(name))
    with pytest.raises(QueueFull, match="this team") as full:
        put(make_call("g"))
    assert full.value.ahead == 6
    client.delete(KEYS.team("team"))
    put(make_call("g"))
    with pytest.raises(QueueFull, match="this model"):
        put(make_call("h"))
    assert not client.exists(KEYS.call("h"))


def test_a_withdrawn_call_leaves_nothing(broker: str, client: redis.Redis) -> None:
    async def come_and_go(queue: CallQueue) -> None:
        await queue.put(make_call("a"))
        await queue.withdraw(make_call("a"))

    asyncio.run(_with_queue(broker, come_and_go))
    assert client.keys() == [b"t:" + queue_name(INTERACTIVE, "null").encode()]
    assert Claims(client, "t:", NO_SEAL).take({"null": 4}) == []


@pytest.mark.parametrize("where", ["loader", "stage", "store"])
def test_whatever_is_wrong_with_a_call_is_its_callers_to_hear(
    client: redis.Redis, put: Put, tmp_path: Path, where: str
) -> None:
    """A bulk run that makes way for it must not be paused by it: nothing is raised."""

    def broken(*_: object, **__: object) -> Any:
        raise OSError("of a library")

    def run(_: str, __: object, sink: Any, **___: object) -> None:
        # A location that no storage knows: the storing thread meets the error.
        sink.take([Rendered(make_call("a").request, None, 0.1, None)])  # type: ignore[arg-type]

    shop: Any = SimpleNamespace(
        claims=Claims(client, "t:", NO_SEAL),
        call_slots={"null": (1,)},
        name="w",
        fitness=Fitness(Fleet(client, "t:"), "w"),
        put=Shelf.put_all,
        loader=broken if where == "loader" else lambda *_: SimpleNamespace(load=lambda _: None),
        call_inputs=None,
        call_flow=Semaphore(),
        accounts=Accounts(),
        stage=SimpleNamespace(run=broken if where == "stage" else run),
    )
    put(replace(make_call("a"), out="nowhere://x" if where == "store" else str(tmp_path)))
    with ThreadPoolExecutor(1) as shop.executor:
        assert serve_calls(shop)
    answer = decode_answer(client.lpop(KEYS.answer("a")))  # type: ignore[arg-type]
    assert (answer.status, answer.code) == ("failed", "unavailable")
    assert "of a library" not in answer.message


@pytest.mark.parametrize("whole", [True, False])
def test_a_call_that_this_worker_cannot_render_goes_to_another(
    client: redis.Redis, put: Put, whole: bool
) -> None:
    fleet = Fleet(client, "t:")
    for name in ("w", "other"):
        fleet.report(Worker(name=name, models=("null",), device="cpu", host="host", pid=1))

    def broken(*_: object, **__: object) -> None:
        raise Unfit("null", whole, FatalError("no weights"))

    shop: Any = SimpleNamespace(
        claims=Claims(client, "t:", NO_SEAL),
        call_slots={"null": (1,)},
        name="w",
        fitness=Fitness(fleet, "w"),
        loader=lambda *_: SimpleNamespace(load=lambda _: None),
        call_inputs=None,
        renderers=SimpleNamespace(get=lambda _: None),
        call_flow=Semaphore(),
        accounts=Accounts(),
        stage=SimpleNamespace(run=broken),
        executor=None,
        put=None,
    )
    put(make_call("a"))
    assert serve_calls(shop)
    assert not client.exists(KEYS.answer("a"))
    # Of the whole model it takes no more; of an adapter it may, once others have had their chance.
    assert not serve_calls(shop)
    calls = Claims(client, "t:", NO_SEAL)
    assert eventually(lambda: calls.take({"null": 1})) == [make_call("a")]
    assert client.get(KEYS.takes("a")) == b"1"  # as if it had not been taken before
    calls.hand_back([make_call("a")], 0)
    fleet.give_up("other", "null", "no weights there either")
    shop.fitness = Fitness(fleet, "w")
    assert serve_calls(shop)
    answer = decode_answer(client.lpop(KEYS.answer("a")))  # type: ignore[arg-type]
    assert (answer.status, answer.code) == ("failed", "unavailable")


@pytest.mark.parametrize("key", [KEYS.waiting("null"), KEYS.takes("a"), KEYS.call("a")])
def test_what_lies_amiss_where_calls_wait_stops_no_bulk_run(
    client: redis.Redis, put: Put, key: str
) -> None:
    put(make_call("a"))
    client.delete(key)
    client.hset(key, "not", "ours")
    shop: Any = SimpleNamespace(
        claims=Claims(client, "t:", NO_SEAL),
        call_slots={"null": (1,)},
        fitness=Fitness(Fleet(client, "t:"), "w"),
    )
    assert not serve_calls(shop)
