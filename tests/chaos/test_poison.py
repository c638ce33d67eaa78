"""Requests and devices that kill whoever touches them."""

from __future__ import annotations

import time

import pytest

from tests.chaos.ledger import Ledger
from tests.samples import make_key, make_request
from tests.sites import Site
from tests.support import Cli, circles, eventually

SEEDS = list(range(10))


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_poison(site: Site, ledger: Ledger, faults: pytest.MonkeyPatch, how: str) -> None:
    """a request that kills its process."""
    ledger.fault = f"a request that makes its process {how}"
    faults.setenv("CHAOS_POISON", f"0 {how}")  # the first: nothing is rendered between the deaths
    site.settings = site.settings.model_copy(update={"batch_seconds": 1.0})
    site.start_worker("null")
    site.start(site.plan("run", "null", SEEDS, chunk=10))
    site.wait("run", 120)
    [failed] = [row for row in ledger.check(site, "run", SEEDS) if row["status"] != "done"]
    assert (failed["custom_id"], failed["code"]) == ("seed-0", "worker_died")
    assert failed["attempt"] == 7
    progress = site.progress("run")
    assert (progress.deaths, progress.suspects) == (6, 1)
    ledger.times = progress.deaths


def test_a_call_that_kills_within_a_batch(
    site: Site, ledger: Ledger, faults: pytest.MonkeyPatch
) -> None:
    """a call that makes its process crash, in the middle of a batch that makes way for it."""
    faults.setenv("CHAOS_POISON", "99 crash")
    site.start_worker("slow")
    site.start(site.plan("run", "slow", SEEDS, chunk=10))
    eventually(lambda: site.progress("run").settled)
    answer = site.answer(site.make_call(make_request(99, make_key(model="slow"))))
    assert (answer.status, answer.code) == ("failed", "worker_died")
    site.wait("run")
    assert {row["status"] for row in ledger.check(site, "run", SEEDS)} == {"done"}
    ledger.times = site.progress("run").deaths
    assert ledger.times


def test_memory(site: Site, ledger: Ledger, faults: pytest.MonkeyPatch) -> None:
    """a request that uses all memory."""
    faults.setenv("CHAOS_POISON", "5 eat")
    site.start_worker("null")
    site.start(site.plan("run", "null", SEEDS, chunk=10))
    site.wait("run")
    [failed] = [row for row in ledger.check(site, "run", SEEDS) if row["status"] != "done"]
    assert (failed["custom_id"], failed["code"]) == ("seed-5", "out_of_memory")
    ledger.times = 1


@pytest.mark.parametrize("process", ["parent", "pool"])
def test_broken_device(
    site: Site, ledger: Ledger, faults: pytest.MonkeyPatch, process: str
) -> None:
    """a device whose process dies at each start."""
    ledger.fault = f"a device whose {process} process dies at each start"
    faults.setenv("CHAOS_START", process)
    started = time.monotonic()
    worker = site.start_worker("null")
    assert worker.wait(90) == 78
    assert "the driver of this device is broken" in site.log(worker)
    assert "ended 3 times soon after its start" in site.log(worker).splitlines()[-1]
    ledger.times = 3
    ledger.recovered(started)


def test_a_broken_device_leaves_the_others_alone(site: Site, faults: pytest.MonkeyPatch) -> None:
    faults.setenv("CHAOS_START", "parent cpu1")
    worker = site.start_worker("slow", "--workers", "2")
    site.start(site.plan("run", "slow", SEEDS, chunk=4))
    eventually(lambda: "It is not started again" in site.log(worker), 60)
    before = site.progress("run").settled
    eventually(lambda: site.progress("run").settled > before or site.wait("run"))
    assert worker.poll() is None
    [member] = site.fleet.workers()
    assert member.name.startswith("cpu0")


def test_a_broken_device_ends_the_command(cli: Cli, faults: pytest.MonkeyPatch) -> None:
    faults.setenv("CHAOS_START", "parent")
    manifest = cli.manifest(*circles(4))
    errors = cli("run", manifest, "--out", "out", "--model", "null", code=1).stderr
    assert "the driver of this device is broken" in errors
    assert "ended 3 times soon after its start" in errors
    assert "Run the same command again" in errors


def test_a_lost_message_comes_back(site: Site, ledger: Ledger) -> None:
    """all messages of a run lost."""
    site.start(site.plan("run", "null", SEEDS, chunk=5))
    eventually(lambda: site.client.delete(f"{site.settings.key_prefix}feed.null"))
    lost = time.monotonic()
    site.start_worker("null")
    site.wait("run")
    ledger.recovered(lost)
    ledger.check(site, "run", SEEDS)
    ledger.times = 1
