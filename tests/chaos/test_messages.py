"""What lies in the queues that nobody of ours has sent."""

from __future__ import annotations

import base64
import json
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.broker import messages
from jobs.broker.backlog import Backlog
from tests.chaos.ledger import Ledger
from tests.sites import Site
from tests.support import eventually

SEEDS = list(range(12))


def ours(site: Site) -> dict[str, Any]:
    """A message that the dispatcher has sent."""
    site.dispatcher.render("nobody", 1, 0, "null", [0])
    raw = site.client.lpop(f"{site.settings.key_prefix}bulk.null")
    assert isinstance(raw, bytes)
    assert messages.parse(raw) == (messages.RENDER, ("nobody", 1, 0, 0))
    return dict(json.loads(raw))


def hostile(good: dict[str, Any]) -> Iterator[bytes]:
    """Variants of a good message, each with one thing wrong."""

    def with_body(value: object) -> dict[str, Any]:
        return good | {"body": base64.b64encode(json.dumps(value).encode()).decode()}

    def with_part(name: str, **fields: object) -> dict[str, Any]:
        return good | {name: good[name] | fields}

    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    evil = {"task": "imagemill.finalize", "args": ["nobody", 1], "kwargs": {}, "options": {}}
    yield from (b"", b"not JSON", b"\xff\xfe", b"[]", b"null", b"{}", b"1", b"[" * 5000)
    yield b'{"__type__": "datetime", "__value__": 7}'
    yield json.dumps(good | {"body": "x" * messages.MAX_BYTES}).encode()
    for message in (
        good | {"body": "%%%"},
        good | {"body": base64.b64encode(b"not JSON").decode()},
        good | {"body": base64.b64encode(pickle.dumps(print)).decode(),
                "content-type": "application/x-python-serialize"},
        good | {"content-encoding": "binary"},
        {name: value for name, value in good.items() if name != "properties"},
        {name: value for name, value in good.items() if name != "headers"},
        with_part("headers", task="celery.backend_cleanup"),
        with_part("headers", task="os.system"),
        with_part("headers", eta="2999-01-01T00:00:00+00:00"),
        with_part("headers", expires="2001-01-01T00:00:00+00:00"),
        with_part("headers", timelimit=[1, 1]),
        with_part("headers", compression="gzip"),
        with_part("properties", delivery_tag=None),
        with_part("properties", delivery_info={"exchange": "x", "routing_key": "y"}),
        with_part("properties", priority="high"),
        with_body({}),
        with_body([["nobody", 1, 0], {}, embed]),
        with_body([["nobody", 1, 0, "0"], {}, embed]),
        with_body([["nobody", 1, 0, -1], {}, embed]),
        with_body([["nobody", 1, 0, 2**64], {}, embed]),
        with_body([["../../etc", 1, 0, 0], {}, embed]),
        with_body([["nobody", 1, 0, 0], {"run_id": "x"}, embed]),
        with_body([["nobody", 1, 0, 0], {}, embed | {"callbacks": [evil]}]),
        with_body([["nobody", 1, 0, 0], {}, embed | {"chain": [evil]}]),
    ):  # fmt: skip
        yield json.dumps(message).encode()


def test_only_our_messages_pass(site: Site) -> None:
    for raw in hostile(ours(site)):
        with pytest.raises(ValueError, match=r"."):
            messages.parse(raw)


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
