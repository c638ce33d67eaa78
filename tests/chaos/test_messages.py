"""What lies in the queues that nobody of ours has sent."""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.broker import messages
from jobs.broker.backlog import Backlog
from jobs.broker.seals import NO_SEAL, Seal
from tests.chaos.ledger import Ledger
from tests.sites import Site, queue_chunks
from tests.support import eventually

SEEDS = list(range(12))


def ours(site: Site) -> dict[str, Any]:
    """A message that the dispatcher has sent; to no worker, not even one that is still dying."""
    queue_chunks(site.dispatcher, "nobody", 1, 0, "unserved", [0])
    raw = site.client.lpop(f"{site.settings.key_prefix}bulk.unserved")
    assert isinstance(raw, bytes)
    found = messages.parse(raw)
    assert (found.task, found.arguments) == (messages.RENDER, ("nobody", 1, 0, 0))
    return dict(json.loads(raw))


def hostile(good: dict[str, Any]) -> Iterator[bytes]:
    """Variants of a good message, each with one thing wrong."""

    def with_body(value: object) -> dict[str, Any]:
        return good | {"body": base64.b64encode(json.dumps(value).encode()).decode()}

    def with_part(name: str, **fields: object) -> dict[str, Any]:
        return good | {name: good[name] | fields}

    def with_info(**fields: object) -> dict[str, Any]:
        return with_part("properties", delivery_info=good["properties"]["delivery_info"] | fields)

    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    evil = {"task": "imagemill.finalize", "args": ["nobody", 1], "kwargs": {}, "options": {}}
    # What kombu's reader turns into an object, or dies of.
    hook = {"__type__": "bogus", "__value__": 7}
    yield from (b"", b"not JSON", b"\xff\xfe", b"[]", b"null", b"{}", b"1", b"[" * 5000)
    yield b'{"__type__": "datetime", "__value__": 7}'
    yield json.dumps(good | {"body": "x" * messages.MAX_BYTES}).encode()
    for message in (
        good | {"body": "%%%"},
        good | {"body": base64.b64encode(b"not JSON").decode()},
        good | {"body": base64.b64encode(pickle.dumps(print)).decode(),
                "content-type": "application/x-python-serialize"},
        good | {"content-encoding": "binary"},
        good | {"extra": 1},
        good | hook,
        {name: value for name, value in good.items() if name != "properties"},
        {name: value for name, value in good.items() if name != "headers"},
        *(good | {name: hook} for name in good),
        *(with_part("headers", **{name: hook}) for name in good["headers"]),
        *(with_part("properties", **{name: hook}) for name in good["properties"]),
        with_part("headers", **hook),
        with_part("properties", **hook),
        with_info(**hook),
        with_info(exchange=hook),
        with_info(routing_key=hook),
        with_info(redelivered=hook),
        with_info(routing_key="bulk.other"),
        with_info(routing_key="../../x"),
        with_part("headers", stamped_headers=5),
        with_part("headers", stamped_headers=["a"], stamps={"a": 5}),
        with_part("headers", callbacks=[evil], chain=[evil]),
        with_part("headers", task="celery.backend_cleanup"),
        with_part("headers", task="os.system"),
        with_part("headers", id="\u0000"),
        with_part("headers", id="x" * 65),
        with_part("headers", seal=5),
        with_part("headers", eta="2999-01-01T00:00:00+00:00"),
        with_part("headers", expires="2001-01-01T00:00:00+00:00"),
        with_part("headers", timelimit=[1, 1]),
        with_part("headers", compression="gzip"),
        with_part("properties", delivery_tag=None),
        with_part("properties", delivery_info={"exchange": "x", "routing_key": "y"}),
        with_part("properties", priority="high"),
        with_part("properties", reply_to="x"),
        with_body({}),
        with_body([["nobody", 1, 0], {}, embed]),
        with_body([["nobody", 1, 0, "0"], {}, embed]),
        with_body([["nobody", 1, 0, -1], {}, embed]),
        with_body([["nobody", 1, 0, 2**64], {}, embed]),
        with_body([["../../etc", 1, 0, 0], {}, embed]),
        with_body([["nobody", 1, 0, hook], {}, embed]),
        with_body([["nobody", 1, 0, 0], {"run_id": "x"}, embed]),
        with_body([["nobody", 1, 0, 0], {}, embed | {"callbacks": [evil]}]),
        with_body([["nobody", 1, 0, 0], {}, embed | {"chain": [evil]}]),
        with_body([["nobody", 1, 0, 0], {}, embed | {"chord": hook}]),
        with_body([["nobody", 1, 0, 0], {}, {}]),
        with_body([["nobody", 1, 0, 0], {}, embed, hook]),
    ):  # fmt: skip
        yield json.dumps(message).encode()


def test_only_our_messages_pass(site: Site) -> None:
    for raw in hostile(ours(site)):
        with pytest.raises(ValueError, match=r"."):
            messages.parse(raw, NO_SEAL, "bulk.null")


def test_a_seal_covers_all_of_a_message() -> None:
    """With a secret, nothing of a message can be changed, nor can it be moved."""
    seal = Seal(b"secret")
    sent = messages.Message(messages.RENDER, ("run", 1, 0, 0), "bulk.null")
    good = json.loads(messages.make(sent, seal))
    assert messages.parse(json.dumps(good).encode(), seal, "bulk.null") == sent
    other = json.loads(messages.make(messages.Message(messages.WAKE, (), "bulk.null"), seal))
    for part, name in (("headers", "task"), ("headers", "id"), ("headers", "seal")):
        changed = good | {part: good[part] | {name: other[part][name]}}
        with pytest.raises(ValueError, match="seal"):
            messages.parse(json.dumps(changed).encode(), seal)
    moved = json.dumps(good).replace("bulk.null", "feed.null").encode()
    for raw in (moved, json.dumps(good | {"body": other["body"]}).encode()):
        with pytest.raises(ValueError, match="seal"):
            messages.parse(raw, seal)
    for text in ("é" * 64, "\ud800", ""):
        changed = good | {"headers": good["headers"] | {"seal": text}}
        with pytest.raises(ValueError, match=r"."):
            messages.parse(json.dumps(changed).encode(), seal)


def test_garbage_among_what_workers_hold(site: Site, ledger: Ledger) -> None:
    """keys of other types, and garbage in kombu's own."""
    prefix, client, seeds = site.settings.key_prefix, site.client, SEEDS
    ledger.times = 11
    spoiled = ("unacked", "unacked_index", "bulk.null", "feed.null", messages.QUARANTINE)

    def spoil() -> None:
        for name in (*spoiled, "look"):
            client.delete(f"{prefix}{name}")
            client.set(f"{prefix}{name}", "of another type")
        client.delete(f"{prefix}unacked_mutex")
        client.rpush(f"{prefix}unacked_mutex", "held for ever")

    spoil()
    worker = site.start_worker("null")
    [member] = eventually(site.fleet.workers)
    eventually(lambda: client.type(f"{prefix}bulk.null") == b"none")
    garbage = [b"", b"{", b"[]", b"5", b"[1, 2, 3]", b'[{"__type__": "x", "__value__": 1}, "", ""]']
    for number, raw in enumerate(garbage):
        client.hset(f"{prefix}unacked", f"tag-{number}", raw)
        client.zadd(f"{prefix}unacked_index", {f"tag-{number}": 1})
    client.zadd(f"{prefix}unacked_index", {"nobody": 1, b"\xff": 1})
    site.start(site.plan("run", "null", seeds, chunk=4))
    site.wait("run")
    ledger.check(site, "run", seeds)
    eventually(lambda: client.zcard(f"{prefix}unacked_index") == 0)
    assert client.hlen(f"{prefix}unacked") == 0
    assert [one.pid for one in site.fleet.workers()] == [member.pid]
    assert worker.poll() is None
    assert client.keys(f"{prefix}damaged:*")


def test_hostile_messages(site: Site, ledger: Ledger, dice: random.Random) -> None:
    """hostile messages in every queue."""
    kinds = list(hostile(ours(site)))
    worker = site.start_worker("null")
    [member] = eventually(site.fleet.workers)
    ledger.times = 500
    with site.client.pipeline() as pipe:
        for number in range(ledger.times):
            queue = f"{dice.choice(['interactive', 'bulk', 'feed'])}.null"
            pipe.lpush(f"{site.settings.key_prefix}{queue}", kinds[number % len(kinds)])
        pipe.execute()
    site.start(site.plan("run", "null", SEEDS, chunk=4))
    site.wait("run")
    ledger.check(site, "run", SEEDS)
    backlog = Backlog(site.client, site.settings.key_prefix)
    eventually(lambda: backlog.quarantined() == ledger.times)
    assert worker.poll() is None
    assert [one.pid for one in site.fleet.workers()] == [member.pid]
    [newest] = site.client.lrange(f"{site.settings.key_prefix}{messages.QUARANTINE}", 0, 0)
    assert json.loads(newest).keys() == {"queue", "reason", "bytes", "message"}


def test_a_message_of_any_length_costs_a_worker_no_memory(site: Site, ledger: Ledger) -> None:
    """a message of 64 MiB."""
    ledger.times = 1
    site.client.config_set("appendonly", "no")  # it would write the message to disk
    worker = site.start_worker("null")
    eventually(site.fleet.workers)
    [parent] = site.parents(worker)
    before = peak(parent.pid)
    site.client.lpush(f"{site.settings.key_prefix}bulk.null", b"x" * 64 * 2**20)
    site.start(site.plan("run", "null", SEEDS, chunk=4))
    site.wait("run")
    ledger.check(site, "run", SEEDS)
    [found] = site.client.lrange(f"{site.settings.key_prefix}{messages.QUARANTINE}", 0, -1)
    assert json.loads(found)["reason"] == f"it has more than {messages.MAX_BYTES} bytes"
    assert peak(parent.pid) - before < 8 * 2**20
    assert [one.pid for one in site.parents(worker)] == [parent.pid]


def peak(pid: int) -> int:
    """The most memory that a process ever held, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (one for one in status.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
