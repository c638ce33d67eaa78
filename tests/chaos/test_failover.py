"""A group of servers whose primary dies: its sentinels choose another one, and work goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs.broker.connection import connect, connect_async
from jobs.settings import Settings
from tests.chaos.ledger import Ledger
from tests.chaos.servers import ASKING, Group, Tls, Valkey
from tests.sites import MODELS, Site
from tests.support import eventually

SEEDS = list(range(400))
GUIDE = Path(__file__).parents[2] / "docs/14-security.md"


@pytest.fixture
def tls() -> bool:
    """Whether all is encrypted."""
    return False


@pytest.fixture
def group(tmp_path: Path, tls: bool) -> Iterator[Group]:
    group = Group(tmp_path, "secret", Tls.make(tmp_path) if tls else None)
    try:
        group.start()
        yield group
    finally:
        group.stop()


@pytest.fixture
def site(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models.toml").write_text(MODELS)
    settings = Settings(broker=group.url, models=tmp_path / "models.toml", visibility_timeout=5)
    site = Site(tmp_path, settings)
    yield site
    for worker in site.workers:
        worker.kill()
        worker.wait()


def settled(site: Site) -> int:
    """How much is rendered; 0 while no primary says."""
    try:
        progress = site.runs.progress("run")
    except redis.RedisError:
        return 0
    return progress.settled if progress else 0


def fail_over(group: Group, site: Site, ledger: Ledger) -> Valkey:
    """Kill the primary under load, and measure until its successor hears of another image."""
    old = group.primary
    old.stop()
    since = time.monotonic()
    before = eventually(lambda: settled(site))
    eventually(lambda: settled(site) > before, 40)
    ledger.recovered(since)
    ledger.times += 1
    assert group.primary is not old
    return old


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.chaos)])
def test_primary_killed(group: Group, site: Site, ledger: Ledger, times: int) -> None:
    """the primary of a group with three sentinels is killed under load."""
    for _ in range(2):
        site.start_worker("slow")
    seeds = SEEDS[: 40 * times]
    site.start(site.plan("run", "slow", seeds, chunk=4))
    site.wait_for_images("run", 4)
    for _ in range(times):
        group.revive(fail_over(group, site, ledger))
    site.wait("run", 90)
    ledger.check(site, "run", seeds)


@pytest.mark.chaos
@pytest.mark.parametrize("tls", [True])
def test_primary_killed_with_tls(group: Group, site: Site, ledger: Ledger) -> None:
    """the same by TLS, with ACL users of servers and of sentinels."""
    assert site.settings.broker.startswith("sentinels://")
    assert f">SECRET {ASKING}\n" in GUIDE.read_text()
    test_primary_killed(group, site, ledger, 2)
    plain = site.settings.model_copy(update={"broker": site.settings.broker.partition("&ssl")[0]})
    with pytest.raises(
        redis.exceptions.ConnectionError, match=r"CERTIFICATE_VERIFY_FAILED|No master"
    ):
        connect(plain).ping()


@pytest.mark.parametrize("seconds", [3, pytest.param(8, marks=pytest.mark.chaos)])
def test_primary_killed_with_its_last_writes(
    group: Group, site: Site, ledger: Ledger, seconds: int
) -> None:
    """group."""
    ledger.fault = f"the primary of a group is killed, and its last {seconds} s of writes are lost"
    for _ in range(2):
        site.start_worker("slow")
    seeds = SEEDS[: 20 * seconds]
    site.start(site.plan("run", "slow", seeds, chunk=4))
    site.wait_for_images("run", 4)
    group.part()
    time.sleep(seconds)  # the fault itself
    fail_over(group, site, ledger)
    site.wait("run", 90)
    ledger.check(site, "run", seeds)


def test_facades_ask_the_other_sentinels(group: Group, site: Site, ledger: Ledger) -> None:
    """the sentinel that is asked first is killed, then the primary."""
    group.sentinels[0].kill()
    group.sentinels[0].wait()

    async def work() -> None:
        async with connect_async(site.settings) as client:
            key = f"{site.settings.key_prefix}doctor"
            await client.set(key, "before")
            # A replica that has it: what is lost is another test's matter.
            await client.wait(1, 5000)
            group.servers[0].stop()
            since = time.monotonic()
            while True:
                assert time.monotonic() < since + 40
                try:
                    if await client.get(key) == b"before":
                        break
                except redis.RedisError:
                    await asyncio.sleep(0.1)
            ledger.recovered(since)

    asyncio.run(work())
    ledger.times = 1
