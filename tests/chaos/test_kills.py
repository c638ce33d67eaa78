"""kill -9 of every process of a worker, at random moments."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import defaultdict
from dataclasses import replace

import pytest

from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.records import read_part
from producer.planning import carrying, manifest, processes
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from tests.chaos.ledger import Ledger
from tests.sites import Site, queue_chunks
from tests.support import alive, eventually

SEEDS = list(range(24))


def checksums(site: Site, ledger: Ledger, run_id: str) -> dict[str, str]:
    found = ledger.check(site, run_id, SEEDS)
    return {row["custom_id"]: row["sha256"] for row in found}


@pytest.mark.parametrize("times", [2, pytest.param(34, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("victim", ["pool process", "parent", "whole worker"])
def test_kills(site: Site, ledger: Ledger, dice: random.Random, victim: str, times: int) -> None:
    """kill -9 of a process."""
    ledger.fault = f"kill -9 of the {victim}, at random moments"
    site.start_worker("slow")
    site.start(site.plan("calm", "slow", SEEDS, chunk=6))
    site.wait("calm")
    calm = checksums(site, ledger, "calm")
    while ledger.times < times:
        run_id = f"run-{ledger.times}"
        site.start(site.plan(run_id, "slow", SEEDS, chunk=6))
        for _ in range(min(4, times - ledger.times)):
            wait_for_progress(site, run_id)
            time.sleep(dice.uniform(0, 0.5))  # a random moment of a batch
            if ended(site, run_id):
                break
            killed = time.monotonic()
            kill(site, victim)
            ledger.times += 1
            wait_for_progress(site, run_id)
            ledger.recovered(killed)
        site.wait(run_id, 90)
        assert checksums(site, ledger, run_id) == calm
    # The lease of what was held, the start of a process, and room for a busy machine.
    assert max(ledger.recoveries) < (5 if victim == "pool process" else 15)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.chaos)])
def test_kills_while_candidates_are_chosen(
    site: Site, ledger: Ledger, dice: random.Random, times: int
) -> None:
    """kill -9 of any process of a worker while runs choose among candidates."""
    site.start_worker(MODELS)
    site.start(choosing(site, "calm"))
    site.wait("calm", 120)
    calm = choices(site, "calm")
    assert len(calm["rejects"]) > 8  # there is something to choose
    check_choices(site, "calm")
    while ledger.times < times:
        run_id = f"run-{ledger.times}"
        site.start(choosing(site, run_id))
        for _ in range(min(4, times - ledger.times)):
            wait_for_progress(site, run_id)
            time.sleep(dice.uniform(0, 0.5))
            if ended(site, run_id):
                break
            kill(site, dice.choice(["pool process", "parent", "whole worker"]), MODELS)
            ledger.times += 1
        site.wait(run_id, 120)
        records = site.records(run_id)
        ledger.doubled += len(records) - len(set(records))
        assert ledger.doubled == 0
        assert choices(site, run_id) == calm


MODELS = "slow,null"
BLOCK = 16  # lines
BOUND = 120  # of brightness


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lines make several shards, of which some hold what others left over."""
    for module in (manifest, carrying):
        monkeypatch.setattr(module, "SHARD_LINES", BLOCK)
    monkeypatch.setattr(processes, "ALONE_SECONDS", 1000)  # other processes would have large ones


def choosing(site: Site, run_id: str) -> Plan:
    """A run of 12 images, each the brightest of two that are bright enough, of at most six; they
    stand among plain lines of many keys, of which hardly two neighbours share a call."""
    rule = {"best_of": 2, "by": "brightness", "min": {"brightness": BOUND}, "max_tries": 6}
    lines: list[dict[str, object]] = [
        {"custom_id": f"{n}", "prompt": f"p {n}", "model": "null", "guidance_scale": n % 7}
        for n in range(7 * BLOCK)
    ]
    for n in range(12):  # in two of seven blocks
        lines.insert(2 * BLOCK + 2 * n, {"custom_id": f"image-{n}", "prompt": f"scene {n}", **rule})
    file = site.folder / f"{run_id}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = PlanOptions(model="slow", scorers=("statistics",))
    job = Job(str(file), f"{site.folder}/{run_id}", site.table, options)
    plan = prepare(replace(identify(job), run_id=run_id))
    assert len(plan.shards) > 7
    assert any(shard.carried for shard in plan.shards)
    return plan


def check_choices(site: Site, run_id: str) -> None:
    """Everything is there, in the manifest's order, and chosen by the scores of all candidates."""
    storage = site.storage(run_id)
    lines = [
        json.loads(line) for line in (site.folder / f"{run_id}.jsonl").read_text().splitlines()
    ]
    images, errors, rejects = (
        list(read_part(storage, path)) for path in (layout.METADATA, layout.ERRORS, layout.REJECTS)
    )
    without = {row["custom_id"] for row in errors}
    names = [line["custom_id"] for line in lines]
    assert [row["custom_id"] for row in images] == [one for one in names if one not in without]
    scores = defaultdict[str, list[float]](list)
    for row in rejects:
        scores[row["custom_id"]].append(dict(row)["brightness"])
    assert without <= scores.keys() <= {name for name in names if name.startswith("image-")}
    for name in without:
        assert len(scores[name]) == 6
        assert max(scores[name]) < BOUND
    for row in images:
        refused, brightness = scores[row["custom_id"]], dict(row)["brightness"]
        assert dict(row).get("candidates", 1) == 1 + len(refused)
        if refused:
            passing = [one for one in (*refused, brightness) if one >= BOUND]
            assert brightness == max(passing)
            assert len(passing) == 2 or len(refused) == 5


def choices(site: Site, run_id: str) -> dict[str, list[tuple[str, ...]]]:
    """What was chosen, and what was not."""
    names = {"chosen": layout.METADATA, "without": layout.ERRORS, "rejects": layout.REJECTS}
    return {
        name: [
            (row["custom_id"], row["job_id"], row.get("sha256", ""))
            for row in read_part(site.storage(run_id), path)
        ]
        for name, path in names.items()
    }


def wait_for_progress(site: Site, run_id: str) -> None:
    """Wait until more is rendered than now, or all."""
    before = site.progress(run_id)

    def goes_on() -> bool:
        now = site.progress(run_id)
        return (
            now.state == "finished" or now.settled > before.settled or now.retries > before.retries
        )

    eventually(goes_on, 60)


def kill(site: Site, victim: str, models: str = "slow") -> None:
    """Kill a process of the newest worker; a whole one is replaced at once, as systemd would."""
    worker = site.workers[-1]
    if victim == "whole worker":
        worker.kill()
        site.start_worker(models)
        return
    children = site.pool_processes(worker)
    for process in site.parents(worker) if victim == "parent" else children:
        process.kill()
    # A child that outlived its parent would render beside the next one.
    eventually(lambda: not any(alive(child) for child in children), 2)


def ended(site: Site, run_id: str) -> bool:
    return site.progress(run_id).state == "finished"


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.chaos)])
def test_killed_pipeline(site: Site, ledger: Ledger, dice: random.Random, times: int) -> None:
    """kill -9 of the pool process, with the demo model."""
    site.start_worker("shapes")
    site.start(site.plan("calm", "shapes", SEEDS, chunk=12))
    site.wait("calm")
    calm = checksums(site, ledger, "calm")
    for number in range(times):
        run_id = f"run-{number}"
        site.start(site.plan(run_id, "shapes", SEEDS, chunk=12))
        site.wait_for_images(run_id, dice.randrange(1, 12))
        killed = time.monotonic()
        kill(site, "pool process")
        wait_for_progress(site, run_id)
        ledger.recovered(killed)
        ledger.times += 1
        site.wait(run_id, 90)
        assert checksums(site, ledger, run_id) == calm


def test_dead_host(site: Site, ledger: Ledger) -> None:
    """a host that is gone, with leases as they are by default."""
    default = type(site.settings)().visibility_timeout
    site.settings = site.settings.model_copy(update={"visibility_timeout": default})
    gone = site.start_worker("slow")
    seeds = list(range(96))  # more than a worker renders while another one starts
    site.start(site.plan("run", "slow", seeds, chunk=96))
    site.wait_for_images("run", 4)
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    killed = time.monotonic()
    gone.kill()
    eventually(lambda: site.progress("run").retries, 20)
    ledger.recovered(killed)
    ledger.times = 1
    assert max(ledger.recoveries) < 15
    site.wait("run")
    ledger.check(site, "run", seeds)


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.chaos)])
def test_killed_before_the_ack(
    site: Site, ledger: Ledger, faults: pytest.MonkeyPatch, times: int
) -> None:
    """a chunk stored, its worker killed before the ack."""
    order = site.folder / "order"
    faults.setenv("CHAOS_ACK", str(order))
    site.start_worker("slow")
    while ledger.times < times:
        run_id = f"run-{ledger.times}"
        order.write_text("kill")
        site.start(site.plan(run_id, "slow", SEEDS[:3], chunk=3))
        eventually(lambda: not order.exists(), 30)
        killed = time.monotonic()
        images = sorted((site.folder / run_id / "images").rglob("*.png"))
        written = [image.stat().st_mtime_ns for image in images]
        site.wait(run_id)
        ledger.recovered(killed)
        assert [image.stat().st_mtime_ns for image in images] == written
        assert site.progress(run_id).retries == 1
        ledger.check(site, run_id, SEEDS[:3])
        ledger.times += 1


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.chaos)])
def test_twins(site: Site, ledger: Ledger, times: int) -> None:
    """one chunk given to two workers at once."""
    site.start_worker("slow")
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    for number in range(2 * times):
        run_id = f"run-{number}"
        plan = site.plan(run_id, "slow", SEEDS[:2], chunk=2)
        epoch = site.runs.open(plan, str(site.folder / run_id), [])
        queue_chunks(site.dispatcher, run_id, epoch, 0, "slow", [0, 0])
        site.wait(run_id)
        ledger.check(site, run_id, SEEDS[:2])
        # Counted only where the second began while the first was at it.
        ledger.times += site.progress(run_id).retries == 1
        if ledger.times == times:
            return
    raise AssertionError(f"only {ledger.times} of {2 * times} pairs met")


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.chaos)])
def test_rolling_restart(site: Site, ledger: Ledger, times: int) -> None:
    """SIGTERM to workers one after the other, under load."""
    workers = [site.start_worker("slow"), site.start_worker("slow")]
    eventually(lambda: len(site.fleet.workers()) == 2)
    seeds = list(range(80 * times))
    site.start(site.plan("run", "slow", seeds, chunk=10))
    for number in range(times):
        before = site.progress("run").settled
        eventually(lambda b=before: site.progress("run").settled > b)
        asked = time.monotonic()
        workers[number % 2].send_signal(signal.SIGTERM)
        assert workers[number % 2].wait(30) == 0
        ledger.recovered(asked)
        ledger.times += 1
        workers[number % 2] = site.start_worker("slow")
        eventually(lambda: len(site.fleet.workers()) == 2)
    site.wait("run", 60 + 10 * times)
    ledger.check(site, "run", seeds)
    assert site.progress("run").deaths == 0


def test_clocks(site: Site, ledger: Ledger, faults: pytest.MonkeyPatch) -> None:
    """clocks of two hosts, one 5 s ahead and one 5 s behind."""
    site.settings = site.settings.model_copy(update={"visibility_timeout": 12.0})
    for ahead in ("5", "-5"):
        faults.setenv("CHAOS_CLOCK", ahead)
        site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    site.start(site.plan("run", "slow", SEEDS, chunk=24))
    site.wait("run")
    assert {row["attempt"] for row in ledger.check(site, "run", SEEDS)} == {1}
    assert all("Synchronise the clocks" in site.log(worker) for worker in site.workers)
    ledger.times = 1


@pytest.mark.chaos
def test_lost_messages(site: Site, ledger: Ledger, dice: random.Random) -> None:
    """kill -9 of all processes, at the full rate of messages (15,000)."""
    worker = site.start_worker("null")
    eventually(site.fleet.workers)
    seeds = list(range(15_000))
    site.start(site.plan("run", "null", seeds, chunk=1, shard=100))
    while ledger.times < 25:
        time.sleep(dice.uniform(0, 1))
        assert not ended(site, "run")
        killed = time.monotonic()
        for parent in site.parents(worker):
            parent.kill()
        worker.kill()
        before = site.progress("run").settled
        worker = site.start_worker("null")
        eventually(lambda b=before: site.progress("run").settled > b or ended(site, "run"), 60)
        ledger.recovered(killed)
        ledger.times += 1
    site.wait("run", 600)
    ledger.check(site, "run", seeds)
