"""Runs take turns by the device time that they and their teams have had."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jobs.broker.dispatch import start_run
from jobs.broker.messages import FINALIZE, RENDER, Message, make, parse
from jobs.broker.progress import Effort
from jobs.broker.turns import GUESS_SECONDS, HALF_LIFE, Turn, whose_turn
from jobs.errors import TransientError
from jobs.teams import Priority
from tests.sites import Site
from worker.tasks import PutBack, feed
from worker.workshop import Workshop


def taken(site: Site) -> Message | None:
    """The next message, as a worker's BRPOP takes it."""
    prefix = site.settings.key_prefix
    found = site.client.brpop([f"{prefix}bulk.null", f"{prefix}feed.null"], 0.01)
    return parse(found[1]) if found else None  # type: ignore[index]


def feed_once(site: Site, shop: Workshop, message: Message) -> None:
    """What a worker does with a feed message, put back at the tail if it is to go round."""
    try:
        feed(shop, lambda: None, *message.arguments)
    except PutBack:
        site.client.lpush(f"{site.settings.key_prefix}{message.queue}", make(message))


def rendered(site: Site, shop: Workshop, most: int, **took: float) -> list[tuple[str, int, int]]:
    """(run, shard, chunk) of the chunks in the order in which workers get them.

    took: device seconds of a run's chunks, which end as soon as they are taken.
    """
    order: list[tuple[str, int, int]] = []
    while len(order) < most and (message := taken(site)):
        if message.task != RENDER:
            feed_once(site, shop, message)
            continue
        run_id, _, shard, chunk = message.arguments
        order.append((run_id, shard, chunk))
        if run_id in took:
            site.runs.spend(run_id, "null", Effort(seconds=took[run_id]))
            shop.turns.settle(run_id, took[run_id])
    return order


def names(order: list[tuple[str, int, int]]) -> str:
    return "".join(run[0].upper() for run, _, _ in order)


def start(
    site: Site, name: str, requests: int, team: str = "default", priority: Priority = "normal"
) -> None:
    plan = site.plan(name, "null", list(range(requests)), chunk=4, shard=16)
    plan = replace(plan, team=team, priority=priority, seconds=0.0)  # nobody has a guess
    start_run(plan, site.storage(name), site.runs, site.dispatcher)


def test_a_short_run_gets_its_turns(site: Site, shop: Workshop) -> None:
    start(site, "long", 64)
    start(site, "short", 12)
    order = rendered(site, shop, 100)
    assert names(order[:8]) == "LSLSLSLL"
    for name, chunks in (("long", 16), ("short", 3)):
        own = [place for run, *place in order if run == name]
        assert own == [[n // 4, n % 4] for n in range(chunks)]
    assert taken(site) is None, "a feed message ends with its run's chunks"


def test_teams_share_by_measured_seconds(site: Site, shop: Workshop) -> None:
    for number in range(4):
        start(site, f"many{number}", 64, "many")
    start(site, "one", 64, "one")
    took = {"one": 30.0} | {f"many{number}": 10.0 for number in range(4)}
    order = rendered(site, shop, 32, **took)
    assert 7 <= names(order).count("O") <= 9, "three chunks of 10 s for each of 30 s"


def test_weights_count(site: Site, shop: Workshop) -> None:
    shop.weights = {"heavy": 3.0}
    start(site, "heavy", 128, "heavy")
    start(site, "light", 128, "light")
    order = rendered(site, shop, 24, heavy=10.0, light=10.0)
    assert 17 <= names(order).count("H") <= 19


def test_short_chunks_make_a_turn_of_some_seconds(site: Site, shop: Workshop) -> None:
    start(site, "long", 64)
    start(site, "short", 20)
    order = rendered(site, shop, 8, long=2.0, short=2.4)
    assert names(order) == "LSLLSSLL", "two chunks, once it is known that they are short"


def test_a_run_whose_storage_is_away_holds_up_no_other(
    site: Site, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(site, "away", 16)
    start(site, "here", 16)
    find = shop.open

    def open_run(run_id: str, epoch: int) -> object:
        if run_id == "away":
            raise TransientError("its storage is away")
        return find(run_id, epoch)

    monkeypatch.setattr(shop, "open", open_run)
    shop.pause_seconds = 0.0
    assert names(rendered(site, shop, 4)) == "HHHH"


def test_what_does_not_go_on_gets_no_turn(site: Site, shop: Workshop) -> None:
    start(site, "gone", 16)
    start(site, "here", 16)
    site.runs.set_state("gone", "cancelled")
    assert names(rendered(site, shop, 100)) == "HHHH"
    assert not shop.turns.waiting(["null"])
    assert taken(site) is None


def test_two_workers_never_give_out_one_chunk(site: Site, shop: Workshop) -> None:
    start(site, "long", 64)
    turn = whose_turn(shop.turns.waiting(["null"]), {})
    assert shop.turns.take(turn, [(0, 0)], (0, 1))
    assert not shop.turns.take(turn, [(0, 0)], (0, 1)), "another worker was first"
    assert site.client.llen(f"{site.settings.key_prefix}bulk.null") == 1
    (waiting,) = shop.turns.waiting(["null"])
    assert waiting.place == (0, 1)
    start(site, "long", 64)
    assert not shop.turns.take(replace(turn, run=waiting), [(0, 1)], None), "it began anew"


def test_what_a_chunk_took_replaces_the_guess(site: Site, shop: Workshop) -> None:
    start(site, "run", 64, "red")
    (one,) = shop.turns.waiting(["null"])
    shop.turns.take(Turn(one, team_lift=100.0), [(0, 0), (0, 1)], (0, 2))
    (one,) = shop.turns.waiting(["null"])
    assert (one.team_used, one.used) == pytest.approx(
        (100 + 2 * GUESS_SECONDS, 2 * GUESS_SECONDS), 1e-3
    )
    for _ in range(2):
        shop.turns.settle("run", 7.0)
    (one,) = shop.turns.waiting(["null"])
    assert (one.team_used, one.used) == pytest.approx((114.0, 14.0), 1e-3)
    later = replace(shop.turns, now=lambda: time.time() + HALF_LIFE)
    assert later.waiting(["null"])[0].team_used == pytest.approx(57.0, 1e-3)


def test_what_was_used_ages_by_the_clock_of_redis_and_no_host_s(site: Site, shop: Workshop) -> None:
    start(site, "run", 64, "red")
    for days in (-1, 1):
        script = (
            "import time\n"
            "right = time.time\n"
            f"time.time = lambda: right() + {days * 86400}\n"
            "from jobs.broker.connection import connect\n"
            "from jobs.broker.seals import NO_SEAL\n"
            "from jobs.broker.turns import Turns\n"
            "from jobs.settings import Settings\n"
            f"settings = Settings(broker={site.settings.broker!r})\n"
            "Turns(connect(settings), settings.key_prefix, NO_SEAL).settle('run', 8.0)\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
    (one,) = shop.turns.waiting(["null"])
    assert (one.team_used, one.used) == pytest.approx((16.0, 16.0), 1e-1)


def test_the_end_of_a_run_waits_for_no_other(site: Site, shop: Workshop) -> None:
    start(site, "other", 16)
    message = taken(site)
    assert message
    feed_once(site, shop, message)
    site.dispatcher.finalize("run", 1, "null")
    message = taken(site)
    assert message
    assert (message.task, message.arguments[0]) == (FINALIZE, "run")
