"""Storage that answers badly, or not at all."""

from __future__ import annotations

import random
import time

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.proxies import Weather, s3_proxy
from tests.sites import Site
from tests.support import eventually


@pytest.mark.parametrize("images", [96, pytest.param(400, marks=pytest.mark.chaos)])
def test_bad_answers(
    site: Site,
    ledger: Ledger,
    dice: random.Random,
    bucket: str,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
) -> None:
    """10 % of S3's answers are 500, 503, slow, reset or cut short."""
    site.out = bucket
    seeds = list(range(images))
    plan = site.plan("run", "null", seeds, chunk=8)
    weather = Weather(dice, 0.1)
    with s3_proxy(s3_server, weather) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        site.start_worker("null")
        site.start(plan)
        eventually(lambda: site.progress("run").state != "running", 240)
        assert site.progress("run").state == "finished", site.progress("run").problem
        weather.share = 0
        ledger.check(site, "run", seeds)
    ledger.times = weather.spoilt
    assert ledger.times


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.chaos)])
def test_outage(
    site: Site,
    ledger: Ledger,
    dice: random.Random,
    bucket: str,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    """S3 answers nothing but errors for a while."""
    ledger.fault = f"S3 answers nothing but errors for {seconds} s"
    site.out = bucket
    seeds = list(range(40))
    plan = site.plan("run", "slow", seeds, chunk=4)
    weather = Weather(dice, 0)
    with s3_proxy(s3_server, weather) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        site.start_worker("slow")
        site.start(plan)
        site.wait_for_images("run", 4)
        weather.out = True
        time.sleep(seconds)  # the fault itself
        before = site.progress("run")
        assert before.state == "running", before.problem
        weather.out = False
        back = time.monotonic()
        eventually(lambda: site.progress("run").chunks_done > before.chunks_done, 60)
        ledger.recovered(back)
        site.wait("run", 120)
        ledger.check(site, "run", seeds)
    ledger.times = 1


def test_full_disk(site: Site, ledger: Ledger, faults: pytest.MonkeyPatch) -> None:
    """the disk is full, then it is not and the run is resumed."""
    seeds = list(range(12))
    full = site.folder / "full"
    faults.setenv("CHAOS_DISK", str(full))
    site.start_worker("slow")
    plan = site.plan("run", "slow", seeds, chunk=4)
    site.start(plan)
    site.wait_for_images("run", 2)
    full.touch()
    eventually(lambda: site.progress("run").state == "paused")
    assert "is full" in site.progress("run").problem
    assert "Free some space" in site.progress("run").problem
    full.unlink()
    site.start(plan)
    site.wait("run")
    ledger.check(site, "run", seeds)
    ledger.times = 1
