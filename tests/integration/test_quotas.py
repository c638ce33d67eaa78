"""Quotas: what a team has left is said when a run is refused, and counted once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from jobs.broker.keys import entering
from jobs.broker.quotas import ENTER_SECONDS, QuotaExceeded, Quotas
from jobs.output.plan import Chunk, Plan, Shard
from jobs.settings import Team
from tests.samples import make_plan
from tests.sites import Site

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def plan(run_id: str, images: int = 10, seconds: float = 100.0, team: str = "red") -> Plan:
    shards = (Shard(images, (Chunk("null", 0, images),)),)
    return make_plan(run_id, shards=shards, team=team, seconds=seconds)


@pytest.fixture
def quotas(site: Site) -> Quotas:
    return Quotas(site.client, site.settings.key_prefix)


def test_seconds_of_a_day(quotas: Quotas) -> None:
    team = Team(device_seconds_a_day=250)
    for _ in range(2):  # however often it is said
        quotas.admit(plan("a"), team, NOON)
    quotas.admit(plan("b"), team, NOON)
    quotas.admit(plan("other", seconds=240, team="blue"), team, NOON)
    with pytest.raises(QuotaExceeded) as refused:
        quotas.admit(plan("c", seconds=50.5), team, NOON)
    assert refused.value.message == (
        "team red may use 250 device seconds a day and has 50 of them left; run c takes about 50"
    )
    assert "at 2026-03-02 00:00 UTC" in refused.value.hint
    with pytest.raises(QuotaExceeded) as refused:
        quotas.admit(plan("c", seconds=251), team, NOON)
    assert "split the manifest" in refused.value.hint
    quotas.admit(plan("d", seconds=50), team, NOON)
    quotas.admit(plan("c", seconds=250), team, NOON + timedelta(hours=12))


def test_images_in_flight(site: Site, quotas: Quotas) -> None:
    team = Team(images_in_flight=25)
    first = plan("a")
    quotas.admit(first, team)
    site.runs.open(first, "out", [])
    quotas.admit(plan("b", 15), team)
    with pytest.raises(QuotaExceeded, match="has 15 of them left; run b has 16"):
        quotas.admit(plan("b", 16), team)
    site.runs.pause("a", "a reason")
    quotas.admit(replace(first, seconds=1e9), Team(device_seconds_a_day=0))  # it goes on already
    with pytest.raises(QuotaExceeded):
        quotas.admit(plan("b", 16), team)
    site.runs.attempts.complete("a", 0, 9, 1)
    quotas.admit(plan("b", 25), team)


def test_of_runs_that_come_at_once_one_finds_room(site: Site, quotas: Quotas) -> None:
    team = Team(images_in_flight=25)
    quotas.admit(plan("a", 20), team)
    quotas.admit(plan("a", 20), team)  # again: it is not beside itself
    with pytest.raises(QuotaExceeded, match="has 5 of them left; run b has 20"):
        quotas.admit(plan("b", 20), team)
    quotas.admit(plan("other", 25, team="blue"), team)
    site.runs.open(plan("a", 20), "out", [])
    quotas.admit(plan("b", 5), team)
    # One that has died before it was open takes no room for ever.
    key = entering(site.settings.key_prefix, "red")
    now = site.client.time()[0]
    site.client.hset(key, "b", f"5 {now - ENTER_SECONDS - 1}")
    quotas.admit(plan("c", 5), team)
    assert site.client.hkeys(key) == [b"c"]


def test_what_others_write_there_ends_nothing(site: Site, quotas: Quotas) -> None:
    key = entering(site.settings.key_prefix, "red")
    site.client.hset(key, "x", "many")
    quotas.admit(plan("a", 20), Team(images_in_flight=25))
    assert site.client.hkeys(key) == [b"a"]


def test_without_a_limit_everything_is_let_in(quotas: Quotas) -> None:
    for number in range(3):
        quotas.admit(plan(f"{number}", 10**9, 1e12), Team())
