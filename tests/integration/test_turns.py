"""Runs take turns: a short one behind a long one waits for a turn, not for the long one."""

from __future__ import annotations

import pytest

from jobs.broker.dispatch import start_run
from jobs.broker.fleet import Worker
from jobs.broker.messages import FINALIZE, RENDER, Message, parse
from tests.sites import Site
from worker.tasks import feed
from worker.workshop import Workshop


def taken(site: Site) -> Message | None:
    """The next message, as a worker's BRPOP takes it."""
    prefix = site.settings.key_prefix
    found = site.client.brpop([f"{prefix}bulk.null", f"{prefix}feed.null"], 0.01)
    return parse(found[1]) if found else None  # type: ignore[index]


def rendered(site: Site, shop: Workshop, most: int) -> list[tuple[str, int, int]]:
    """(run, shard, chunk) of the chunks in the order in which workers get them."""
    order: list[tuple[str, int, int]] = []
    while len(order) < most and (message := taken(site)):
        if message.task == RENDER:
            run_id, _, shard, chunk = message.arguments
            order.append((run_id, shard, chunk))
        else:
            feed(shop, lambda: None, *message.arguments)
    return order


def start(site: Site, name: str, requests: int) -> None:
    plan = site.plan(name, "null", list(range(requests)), chunk=4, shard=16)
    start_run(plan, site.storage(name), site.runs, site.dispatcher)


@pytest.mark.parametrize(("workers", "turns"), [(1, "LSLSLSLL"), (2, "LLSSLLSLLL")])
def test_a_short_run_gets_its_turns(site: Site, shop: Workshop, workers: int, turns: str) -> None:
    for number in range(workers):
        site.fleet.report(Worker(f"w{number}", ("null",), "cpu", "host", 1))
    start(site, "long", 64)
    start(site, "short", 12)
    order = rendered(site, shop, 100)
    assert "".join(run[0].upper() for run, _, _ in order[: len(turns)]) == turns
    for name, chunks in (("long", 16), ("short", 3)):
        own = [place for run, *place in order if run == name]
        assert own == [[n // 4, n % 4] for n in range(chunks)]


def test_short_chunks_make_a_turn_of_some_seconds(site: Site, shop: Workshop) -> None:
    site.fleet.report(Worker("w", ("null",), "cpu", "host", 1))
    shop.pace["null"] = 0.5  # seconds a request: of five seconds' worth are two chunks of four
    start(site, "long", 64)
    start(site, "short", 12)
    assert [run for run, _, _ in rendered(site, shop, 5)] == ["long"] * 2 + ["short"] * 2 + ["long"]


def test_the_end_of_a_run_waits_for_no_other(site: Site) -> None:
    site.dispatcher.render("other", 1, 0, "null", range(50))
    site.dispatcher.finalize("run", 1, "null")
    message = taken(site)
    assert message
    assert (message.task, message.arguments[0]) == (FINALIZE, "run")
