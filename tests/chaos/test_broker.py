"""A broker that dies, forgets, fills up or falls silent."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from jobs.output.plan import Plan
from jobs.settings import Settings
from tests.chaos.ledger import Ledger
from tests.chaos.proxies import Link
from tests.chaos.servers import Valkey
from tests.sites import MODELS, Site
from tests.support import eventually

SEEDS = list(range(32))

Build = Callable[[bool], tuple[Valkey, Site]]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """Makes an installation with a broker of its own, with AOF or without."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models.toml").write_text(MODELS)
    made: list[tuple[Valkey, Site]] = []

    def make(aof: bool) -> tuple[Valkey, Site]:
        valkey = Valkey(tmp_path, aof)
        valkey.start()
        settings = Settings(
            broker=valkey.url, models=tmp_path / "models.toml", visibility_timeout=5
        )
        made.append((valkey, Site(tmp_path, settings)))
        return made[-1]

    yield make
    for valkey, site in made:
        for worker in site.workers:
            worker.kill()
            worker.wait()
        if valkey.process:
            valkey.process.kill()
            valkey.process.wait()


def begin(site: Site) -> Plan:
    """A run that is under way."""
    site.start_worker("slow")
    plan = site.plan("run", "slow", SEEDS, chunk=4)
    site.start(plan)
    site.wait_for_images("run", 2)
    return plan


def settled(site: Site) -> int:
    """How much is rendered; 0 while the broker does not say."""
    try:
        progress = site.runs.progress("run")
    except redis.RedisError:
        return 0
    return progress.settled if progress else 0


def recover(site: Site, ledger: Ledger, seconds: float) -> None:
    """Measure until work goes on, then let the run finish."""
    back = time.monotonic()
    before = eventually(lambda: settled(site), seconds)
    eventually(lambda: settled(site) > before, seconds)
    ledger.recovered(back)
    ledger.times += 1
    site.wait("run", 90)
    ledger.check(site, "run", SEEDS)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)]
)
def test_restart_with_aof(build: Build, ledger: Ledger, how: signal.Signals) -> None:
    """broker."""
    ledger.fault = f"the broker gets {how.name} and starts again with its AOF"
    valkey, site = build(True)
    begin(site)
    valkey.stop(how)
    valkey.start()
    recover(site, ledger, 25)


@pytest.mark.parametrize(
    "how",
    [
        "FLUSHALL",
        pytest.param("SIGKILL", marks=pytest.mark.chaos),
        pytest.param("SIGTERM", marks=pytest.mark.chaos),
    ],
)
def test_wiped(build: Build, ledger: Ledger, how: str) -> None:
    """broker."""
    ledger.fault = f"the broker forgets everything ({how}), then one resume"
    valkey, site = build(False)
    plan = begin(site)
    if how == "FLUSHALL":
        site.client.flushall()
    else:
        valkey.stop(signal.Signals[how])
        valkey.start()
    eventually(lambda: site.runs.progress("run") is None)
    site.start(plan)  # all that `imagemill resume` does
    recover(site, ledger, 25)


@pytest.mark.parametrize(
    ("seconds", "aof"),
    [
        (8, False),
        pytest.param(30, False, marks=pytest.mark.chaos),
        pytest.param(30, True, marks=pytest.mark.chaos),
    ],
)
def test_frozen(build: Build, ledger: Ledger, seconds: int, aof: bool) -> None:
    """broker."""
    ledger.fault = f"the broker is frozen (SIGSTOP) for {seconds} s" + ", with AOF" * aof
    valkey, site = build(aof)
    begin(site)
    valkey.send(signal.SIGSTOP)
    time.sleep(seconds)  # the fault itself
    valkey.send(signal.SIGCONT)
    recover(site, ledger, 25)


def test_killed_connections(build: Build, ledger: Ledger) -> None:
    """CLIENT KILL of every connection."""
    _, site = build(False)
    begin(site)
    site.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    recover(site, ledger, 25)


@pytest.mark.chaos
def test_full(build: Build, ledger: Ledger) -> None:
    """the broker has no memory left (maxmemory, noeviction) for 5 s."""
    _, site = build(False)
    begin(site)
    site.client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        site.client.set("more", "memory")
    time.sleep(5)  # the fault itself
    site.client.config_set("maxmemory", 0)
    recover(site, ledger, 40)


@pytest.mark.parametrize(
    "moment",
    [
        "while a batch renders",
        pytest.param("while the worker is idle", marks=pytest.mark.chaos),
        pytest.param("before an ack", marks=pytest.mark.chaos),
    ],
)
def test_blackhole(
    build: Build, ledger: Ledger, faults: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    """network."""
    ledger.fault = f"the network swallows everything for 10 s {moment}"
    valkey, site = build(False)
    link = Link(valkey.port)
    through = {"broker": f"redis://127.0.0.1:{link.port}/0"}
    site.settings = site.settings.model_copy(update=through)  # the workers' alone
    if moment == "while the worker is idle":
        site.start_worker("slow")
        eventually(site.fleet.workers)
        link.cut()
        site.start(site.plan("run", "slow", SEEDS, chunk=4))
    elif moment == "before an ack":
        order = tmp_path / "order"
        order.write_text("hold")
        faults.setenv("CHAOS_ACK", str(order))
        site.start_worker("slow")
        site.start(site.plan("run", "slow", SEEDS, chunk=4))
        eventually(lambda: order.read_text() == "held")
        link.cut()
        order.unlink()
    else:
        begin(site)
        link.cut()
    time.sleep(10)  # the fault itself
    link.mend()
    recover(site, ledger, 25)
    link.close()
