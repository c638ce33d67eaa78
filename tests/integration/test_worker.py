"""Real worker processes on a real Valkey: everything finishes, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from jobs.broker.progress import State
from jobs.output import layout
from tests.sites import DEMO, MODELS, Site, queue_chunks
from tests.support import alive, eventually, rows


def test_a_run_becomes_a_dataset(site: Site) -> None:
    site.start_worker("null")
    site.start(site.plan("run", "null", list(range(10)), chunk=4))
    found = site.wait("run")
    assert [row["custom_id"] for row in found] == [f"seed-{seed}" for seed in range(10)]
    for row in found:
        assert (site.folder / "run" / str(row["file_name"])).stat().st_size == row["bytes"]
    assert rows(site.folder / "run/errors.jsonl") == []
    assert site.progress("run").done == 10


def test_the_fleet_knows_its_workers(site: Site) -> None:
    worker = site.start_worker("null,slow")
    [member] = eventually(site.fleet.workers)
    assert (member.models, member.device) == (("null", "slow"), "cpu")
    worker.terminate()
    assert worker.wait(20) == 0
    assert site.fleet.workers() == []


def test_pixels_do_not_depend_on_neighbours_or_position(site: Site) -> None:
    """Guarantee 2, with the demo model: other order, other chunks, other neighbours."""
    site.start_worker("shapes")
    site.start(site.plan("one", "shapes", [1, 2, 3, 4, 5], chunk=5))
    site.start(site.plan("two", "shapes", [9, 4, 2, 5, 8, 1], chunk=3))
    one = {row["custom_id"]: row["sha256"] for row in site.wait("one", 120)}
    two = {row["custom_id"]: row["sha256"] for row in site.wait("two", 120)}
    assert len(set(one.values())) == 5
    assert {name: one[name] for name in one.keys() & two} == {
        name: two[name] for name in ("seed-1", "seed-2", "seed-4", "seed-5")
    }


def test_records_tell_what_rendered(site: Site) -> None:
    site.start_worker("shapes")
    site.start(site.plan("run", "shapes", [7], chunk=1))
    [row] = site.wait("run", 120)
    assert row["pipeline"] == "StableDiffusionPipeline"
    assert (row["batch_width"], row["threads"], row["device"]) == (4, 2, "cpu")
    assert "torch 2.13.0" in str(row["versions"])
    assert row["seed"] == "7"
    assert row["attempt"] == 1


def test_a_killed_pool_process_costs_nothing(site: Site) -> None:
    """Guarantee 5: a dead process's chunk runs again within 5 s."""
    worker = site.start_worker("slow")
    site.start(site.plan("run", "slow", list(range(8)), chunk=8))
    site.wait_for_images("run", 2)
    [child] = site.pool_processes(worker)
    child.kill()
    key = f"{site.settings.key_prefix}run:run:attempts"
    eventually(lambda: site.client.hget(key, "0") == b"2", 5)
    assert [row["attempt"] for row in site.wait("run")] == [2] * 8


def test_a_killed_parent_costs_nothing(site: Site) -> None:
    """Guarantee 5: a dead host's chunk runs elsewhere when its lease has run out."""
    first = site.start_worker("slow")
    site.start(site.plan("run", "slow", list(range(40)), chunk=40))
    site.wait_for_images("run", 1)
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    first.kill()  # and with it all its processes
    found = site.wait("run", 40)
    assert [row["attempt"] for row in found] == [2] * 40


def test_a_task_longer_than_the_lease_runs_once(site: Site) -> None:
    site.start_worker("slow")
    site.start_worker("slow")
    eventually(lambda: len(site.fleet.workers()) == 2)
    site.start(site.plan("run", "slow", list(range(40)), chunk=40))  # 10 s; the lease is of 5 s
    assert [row["attempt"] for row in site.wait("run")] == [1] * 40


def test_sigterm_stores_what_is_finished_and_puts_the_rest_back(site: Site) -> None:
    first = site.start_worker("slow")
    site.start(site.plan("run", "slow", list(range(12)), chunk=12))
    site.wait_for_images("run", 2)
    first.terminate()
    assert first.wait(20) == 0
    [part] = (site.folder / "run/_run/run/parts").iterdir()
    finished = {row["custom_id"] for row in rows(part)}
    assert 2 <= len(finished) < 12
    site.start_worker("slow")
    found = site.wait("run", 5 + 10)  # at once, not when a lease runs out
    assert {row["custom_id"] for row in found if row["attempt"] == 1} == finished


def test_a_second_signal_stops_at_once(site: Site) -> None:
    worker = site.start_worker("slow")
    site.start(site.plan("run", "slow", list(range(40)), chunk=40))
    site.wait_for_images("run", 1)
    processes = psutil.Process(worker.pid).children(recursive=True)
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGTERM)  # another one, as two equal pending signals are one
    assert worker.wait(2) == 0
    eventually(lambda: not any(alive(process) for process in processes), 2)


def test_nothing_outlives_a_killed_supervisor(site: Site) -> None:
    worker = site.start_worker("null")
    eventually(site.fleet.workers)
    processes = psutil.Process(worker.pid).children(recursive=True)
    assert processes
    worker.kill()
    eventually(lambda: not any(alive(process) for process in processes), 5)


def test_a_process_that_dies_is_started_again(site: Site) -> None:
    site.start_worker("null")
    [member] = eventually(site.fleet.workers)
    os.kill(member.pid, signal.SIGKILL)
    eventually(lambda: member.pid not in {m.pid for m in site.fleet.workers() or [member]}, 20)


def test_a_complete_chunk_is_not_rendered_again(site: Site) -> None:
    site.start_worker("null")
    plan = site.plan("run", "null", list(range(4)), chunk=4)
    site.start(plan)
    site.wait("run")
    images = sorted((site.folder / "run/images").rglob("*.png"))
    written = [image.stat().st_mtime_ns for image in images]
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    queue_chunks(site.dispatcher, "run", epoch, 0, "null", [0])
    site.wait("run")
    assert [image.stat().st_mtime_ns for image in images] == written
    assert site.progress("run").done == 4


def test_messages_of_an_older_epoch_are_void(site: Site) -> None:
    plan = site.plan("run", "null", list(range(4)), chunk=4)
    epoch = site.runs.open(plan, str(site.folder / "run"), [])
    queue_chunks(site.dispatcher, "run", epoch, 0, "null", [0])
    site.runs.open(plan, str(site.folder / "run"), [])
    site.start_worker("null")
    site.start(site.plan("other", "null", [1], chunk=1))
    site.wait("other")  # it is behind the void message
    assert not (site.folder / "run/images").exists()


def test_redis_that_counted_too_much_loses_nothing(site: Site) -> None:
    """Storage is the truth: finalize queues again what has no record."""
    plan = site.plan("run", "null", list(range(8)), chunk=4)
    epoch = site.runs.open(plan, str(site.folder / "run"), [(0, 4), (1, 4)])
    site.dispatcher.finalize("run", epoch, "null")
    site.start_worker("null")
    assert len(site.wait("run")) == 8


def test_other_weights_pause_the_run_and_say_so(site: Site) -> None:
    plan = site.plan("run", "null", [1], chunk=1)
    (site.folder / "run" / layout.plan("run")).write_text(
        (site.folder / "run" / layout.plan("run"))
        .read_text()
        .replace(plan.fingerprints["null"], "0123456789abcdef")
    )
    site.start_worker("null")
    site.start(plan)
    eventually(lambda: site.progress("run").state == "paused")
    problem = site.progress("run").problem
    assert "0123456789abcdef" in problem
    assert plan.fingerprints["null"] in problem


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_a_stopped_run_ends_after_its_batch(site: Site, state: State) -> None:
    site.start_worker("slow")
    site.start(site.plan("run", "slow", list(range(100)), chunk=50))
    site.wait_for_images("run", 2)
    site.runs.set_state("run", state)
    parts = site.folder / "run/_run/run/parts"
    eventually(lambda: parts.exists() and list(parts.iterdir()), 5)
    eventually(lambda: site.client.hlen(f"{site.settings.key_prefix}unacked") == 0, 5)
    assert len(list((site.folder / "run/images").rglob("*.png"))) < 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nonsense"], "unknown model 'nonsense'"),
        (["--devices", "cpu,0"], "no GPU 'cpu'"),
        (["--models-file", "missing.toml"], "models table missing.toml"),
    ],
)
def test_what_cannot_work_ends_with_a_message(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_weights_end_with_a_message(site: Site) -> None:
    (site.folder / "models.toml").write_text(
        MODELS.replace(str(DEMO), str(site.folder / "nowhere"))
    )
    (site.folder / "nowhere").mkdir()
    worker = site.start_worker("shapes")
    assert worker.wait(30) == 78
    assert "nowhere has no model_index.json" in site.log(worker)
