"""What only shows after a while, and commands that are killed."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import psutil
import pytest

from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, launch, prepare
from tests.chaos.ledger import Ledger
from tests.sites import Site
from tests.support import Cli, circles, eventually, rows


@pytest.mark.chaos
def test_soak(site: Site, ledger: Ledger) -> None:
    """nothing: 100,000 requests in one run."""
    count = 100_000
    manifest = site.folder / "manifest.jsonl"
    with manifest.open("wb") as file:
        for number in range(count):
            line = {"custom_id": f"seed-{number}", "prompt": "p", "model": "null"}
            file.write(orjson.dumps(line) + b"\n")
    worker = site.start_worker("null")
    job = Job(str(manifest), str(site.folder / "run"), site.table, PlanOptions())
    submission = identify(job)
    plan = prepare(submission)
    launch(plan, submission.storage, site.runs, site.dispatcher)

    def measure() -> tuple[int, int, int]:
        processes = psutil.Process(worker.pid).children(recursive=True)
        return (
            sum(process.memory_info().rss for process in processes),
            sum(process.num_fds() for process in processes),
            int(site.client.info("memory")["used_memory"]),
        )

    eventually(lambda: site.progress(plan.run_id).done > count // 5, 600)
    warm = measure()
    eventually(lambda: site.progress(plan.run_id).done > count * 9 // 10, 1800)
    late = measure()
    eventually(lambda: site.progress(plan.run_id).state == "finished", 300)
    names = [row["custom_id"] for row in rows(site.folder / "run/metadata.jsonl")]
    ledger.doubled = len(names) - len(set(names))
    ledger.lost = count - len(set(names))
    assert (ledger.lost, ledger.doubled) == (0, 0)
    ledger.fault += f" RSS {warm[0] >> 20} → {late[0] >> 20} MiB, files {warm[1]} → {late[1]}, "
    ledger.fault += f"Redis {warm[2] >> 10} → {late[2] >> 10} KiB"
    assert late[0] < warm[0] * 1.1
    assert late[1] <= warm[1] + 4
    assert late[2] < warm[2] * 1.5


def planning(out: Path) -> bool:
    return bool(list(out.glob("_run/*/plan/*"))) and not list(out.glob("_run/*/plan.json"))


def feeding(out: Path) -> bool:
    return bool(list(out.glob("_run/*/plan.json"))) and not list(out.glob("_run/*/parts/*"))


def rendering(out: Path) -> bool:
    return bool(list(out.glob("_run/*/parts/*")))


@pytest.mark.parametrize("times", [1, pytest.param(7, marks=pytest.mark.chaos)])
def test_killed_commands(cli: Cli, ledger: Ledger, times: int) -> None:
    """kill -9 of imagemill run, while it plans, feeds or renders."""
    count = 10_000
    manifest = cli.manifest(*[line | {"model": "null"} for line in circles(count)])
    for number in range(times):
        out = cli.folder / f"out-{number}"
        for moment in (planning, feeding, rendering):
            command = cli.start("run", manifest, "--out", out.name)
            eventually(lambda m=moment, o=out: m(o), 30)
            command.send_signal(signal.SIGKILL)
            with command:
                assert command.wait() == -signal.SIGKILL
            eventually(lambda: not cli.processes(), 5)
            ledger.times += 1
        cli("run", manifest, "--out", out.name)
        names = [row["custom_id"] for row in rows(out / "metadata.jsonl")]
        ledger.lost += count - len(set(names))
        ledger.doubled += len(names) - len(set(names))
        assert (ledger.lost, ledger.doubled) == (0, 0)
