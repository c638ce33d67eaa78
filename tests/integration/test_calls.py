"""The claims on interactive calls, with a real server."""

from __future__ import annotations

import orjson
import pytest
import redis

from jobs import calls as module
from jobs.broker import connect
from jobs.calls import Call, CallKeys, Calls, decode_answer, encode_call
from jobs.requests import BatchKey, Request
from jobs.seals import NO_SEAL, Seal
from jobs.settings import Settings
from tests.support import eventually

KEYS = CallKeys("t:")


@pytest.fixture
def client(broker: str) -> redis.Redis:
    return connect(Settings(broker=broker))


def make_call(name: str, model: str = "null", width: int = 64) -> Call:
    key = BatchKey("generate", model, "", width, 64, 8)
    request = Request(0, name, key, "prompt", "", 2**64 - 1, "png", "0" * 32, ("sha256:0",))
    return Call(name, "team", request, "/out", f"calls/{name}.png")


def add(client: redis.Redis, call: Call, at: float) -> None:
    """What a facade does."""
    client.set(KEYS.call(call.id), encode_call(call, NO_SEAL), ex=60)
    client.zadd(KEYS.waiting(call.request.key.model), {call.member: at})


def test_oldest_first_and_only_what_fits_together(client: redis.Redis) -> None:
    names = ["a", "b", "wide", "c", "d"]
    added = {name: make_call(name, width=128 if name == "wide" else 64) for name in names}
    for at, name in enumerate(names, 2):
        add(client, added[name], at)
    add(client, make_call("first", "other"), 1)
    calls = Calls(client, "t:", NO_SEAL)
    widths = {"null": 3, "other": 1}
    taken = [[call.id for call in calls.take(widths)] for _ in range(5)]
    assert taken == [["first"], ["a", "b", "c"], ["wide"], ["d"], []]


def test_a_call_comes_back_as_it_was(client: redis.Redis) -> None:
    call = make_call("a")
    add(client, call, 1)
    assert Calls(client, "t:", NO_SEAL).take({"null": 4}) == [call]


def test_withdrawn_calls_are_dropped(client: redis.Redis) -> None:
    add(client, make_call("a"), 1)
    add(client, make_call("b", width=128), 2)
    client.delete(KEYS.call("a"))
    assert [call.id for call in Calls(client, "t:", NO_SEAL).take({"null": 4})] == ["b"]
    assert client.zcard(KEYS.waiting("null")) == 1


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b" {}", b"no seal", encode_call(make_call("a"), Seal(b"x"))]
)
def test_a_call_of_somebody_else_is_dropped(client: redis.Redis, body: bytes) -> None:
    seal = Seal(b"secret")
    add(client, make_call("a"), 1)
    client.set(KEYS.call("a"), body)
    client.zadd(KEYS.waiting("null"), {make_call("b").member: 2})
    client.set(KEYS.call("b"), encode_call(make_call("b"), seal))
    assert Calls(client, "t:", seal).take({"null": 1}) == [make_call("b")]
    assert client.zscore(KEYS.waiting("null"), make_call("a").member) is None


def test_a_call_whose_workers_die_is_given_up(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLAIM_SECONDS", 0)
    calls = Calls(client, "t:", NO_SEAL)
    for number, name in enumerate("ab", 1):
        add(client, make_call(name), number)
    assert [call.id for call in calls.take({"null": 4})] == ["a", "b"]
    # From now on each goes alone, the oldest claim first.
    seen = [[call.id for call in calls.take({"null": 4})] for _ in range(4)]
    assert sorted(seen) == [["a"], ["a"], ["b"], ["b"]]
    assert calls.take({"null": 4}) == []
    for name in "ab":
        (row,) = client.lrange(KEYS.answer(name), 0, -1)
        assert decode_answer(row).code == "worker_died"


def test_claims_run_out_unless_they_are_kept(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLAIM_SECONDS", 0.6)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.1)
    add(client, make_call("a"), 1)
    mine, other = Calls(client, "t:", NO_SEAL), Calls(client, "t:", NO_SEAL)
    taken = mine.take({"null": 1})
    with mine.keep(taken):
        score = client.zscore(KEYS.waiting("null"), taken[0].member)
        eventually(lambda: client.zscore(KEYS.waiting("null"), taken[0].member) > score + 0.7)
        assert other.take({"null": 1}) == []
    assert eventually(lambda: other.take({"null": 1}), 5) == taken


def test_one_answer_is_heard(client: redis.Redis) -> None:
    call = make_call("a")
    add(client, call, 1)
    calls = Calls(client, "t:", NO_SEAL)
    calls.take({"null": 1})
    calls.answer(call, {"status": "done", "seconds_render": 1.5, "seed": "7"})
    calls.answer(call, {"status": "failed", "code": "late"})
    assert client.llen(KEYS.answer("a")) == 1
    found = client.lpop(KEYS.answer("a"))
    assert orjson.loads(found)["seed"] == "7"
    assert decode_answer(found).seconds_render == 1.5
    assert not client.exists(KEYS.waiting("null"), KEYS.call("a"))
