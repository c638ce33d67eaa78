"""submit, worker, status, watch, cancel and resume against a broker that runs already."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from jobs.broker.connection import connect
from jobs.settings import Settings
from tests.facades import picture
from tests.support import Cli, circles, eventually, rows

PICTURE = picture(size=(64, 64))
REQUESTS = 20_000  # many seconds of the null renderer


@pytest.fixture
def installed(cli: Cli, broker: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with a broker of its own."""
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    return cli


@pytest.fixture
def worker(installed: Cli) -> Iterator[subprocess.Popen[str]]:
    running = installed.start("worker", "--devices", "cpu", "--models", "null")
    yield running
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=40)
    assert running.returncode == 0, said


@pytest.fixture
def editor(installed: Cli, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A worker whose null model edits as well."""
    table = installed.folder / "models.toml"
    table.write_text(
        'default = "null"\n[models.null]\nrepo = "null:"\nsize = [64, 64]\n'
        'takes = ["generate", "edit"]\n'
    )
    monkeypatch.setenv("IMAGEMILL_MODELS", str(table))
    request.getfixturevalue("worker")


@pytest.mark.usefixtures("worker")
def test_submitted_run_finishes(installed: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = installed.manifest(*circles(20))
    run_id = installed("submit", manifest, "--out", "out", "--model", "null").stdout.strip()
    watched = installed.json("watch", run_id)
    assert (watched["run_id"], watched["summary"]["done"]) == (run_id, 20)
    assert installed.json("status", "out") == installed.json("status", run_id)
    (listed,) = installed.json("status")
    assert (listed["run_id"], listed["state"], listed["done"]) == (run_id, "finished", 20)
    assert (listed["team"], listed["priority"]) == ("default", "normal")
    submit = ("submit", manifest, "--out", "out", "--model", "null")
    for again in (installed(*submit), installed(*submit, "--wait")):
        assert again.stdout == f"{run_id}\n"
        assert "Nothing was left to render: 20 images" in again.stderr
    assert installed.json(*submit) == installed.json("status", run_id)
    assert "Nothing of it is left" in installed("prioritize", "out", "high", code=2).stderr
    waited = installed.json(*submit, "--wait")
    assert (waited["run_id"], waited["rendered"]) == (run_id, False)
    image = next((installed.folder / "out" / "images").rglob("*.jpg"))
    image.unlink()
    # Which was within the quota when it was submitted.
    monkeypatch.setenv("IMAGEMILL_TEAMS", '{"default": {"images_in_flight": 20}}')
    again = installed(*submit, "--wait")
    assert again.stdout == f"{run_id}\n"
    assert "1 image is gone from" in again.stderr
    assert "20 images in" in again.stderr
    assert image.exists()


@pytest.mark.usefixtures("worker")
def test_a_watched_run_is_told_by_its_own_figures(installed: Cli) -> None:
    manifest = installed.manifest(*circles(20))
    installed("submit", manifest, "--out", "out", "--model", "null", "--wait")
    summary = installed.json("watch", "out")["summary"]
    begun, ended = (datetime.fromisoformat(summary[at]) for at in ("created_at", "finished_at"))
    took = (ended - begun).total_seconds()
    told = installed("watch", "out").stdout
    assert f"20 images in {installed.folder / 'out'} ({took:.1f} s)" in told
    assert installed.json("watch", "out")["seconds"] == took


def test_a_team_with_too_little_left_is_told(
    installed: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEMILL_TEAMS", '{"small": {"images_in_flight": 5}}')
    manifest = installed.manifest(*circles(6))
    submit = ("submit", manifest, "--out", "out", "--model", "null", "--quiet")
    refused = installed(*submit, "--team", "small", code=2).stderr
    assert "team small may have 5 images in flight and has 5 of them left" in refused
    assert installed.json("status") == []
    assert installed.json(*submit, "--priority", "high")["priority"] == "high"
    assert installed("submit", manifest, "--out", "o", "--team", "a/b", code=2).stderr


def test_an_output_location_takes_one_run_at_a_time(installed: Cli) -> None:
    manifest = installed.manifest(*circles(6))
    submit = ("submit", manifest, "--out", "out", "--model", "null")
    run_id = installed(*submit).stdout.strip()
    assert installed(*submit).stdout.strip() == run_id
    refused = installed(*submit, "--seed", "1", code=1).stderr
    assert f"run {run_id} goes on in" in refused
    assert f"imagemill resume {installed.folder / 'out'}" in installed("cancel", run_id).stderr
    assert installed(*submit, "--seed", "1").stdout.strip() != run_id


@pytest.mark.usefixtures("worker")
def test_cancelled_run_resumes(installed: Cli) -> None:
    manifest = installed.manifest(*circles(REQUESTS))
    run_id = installed.json("submit", manifest, "--out", "out", "--model", "null")["run_id"]
    eventually(lambda: installed.json("status", run_id)["done"], 60)
    assert installed.json("cancel", run_id)["state"] == "cancelled"
    assert "was cancelled" in installed("watch", "out", code=1).stderr
    assert "was cancelled" in installed("pause", "out", code=2).stderr
    stopped = installed.json("status", "out")
    assert stopped["state"] == "cancelled"
    assert stopped["done"] < REQUESTS
    assert installed.json("resume", "out")["state"] == "running"
    assert installed.json("watch", "out")["summary"]["done"] == REQUESTS
    assert len(rows(installed.folder / "out" / "metadata.jsonl")) == REQUESTS


@pytest.mark.usefixtures("editor")
def test_what_failed_is_retried_without_its_manifest(installed: Cli) -> None:
    digest = sha256(PICTURE).hexdigest()
    away = {"prompt": "redder", "custom_id": "late", "image": f"sha256:{digest}"}
    manifest = installed.manifest(*circles(3), away)
    installed("submit", manifest, "--out", "out", "--model", "null", "--wait", code=1)
    failed = installed.json("status", "out")
    assert (failed["done"], failed["failed"]) == (3, 1)
    (installed.folder / manifest).unlink()
    inputs = installed.folder / "out" / "_inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / digest).write_bytes(PICTURE)
    retried = installed.json("retry", failed["run_id"], "--wait")["summary"]
    assert retried["run_id"] != failed["run_id"]
    assert retried["done"] == 4
    assert "has taken" in installed("retry", failed["run_id"], code=2).stderr
    assert "has taken" in installed("resume", failed["run_id"], code=2).stderr
    assert len(rows(installed.folder / "out" / "metadata.jsonl")) == 4
    assert "has an image of every request" in installed("retry", "out", code=2).stderr


@pytest.mark.usefixtures("editor")
def test_what_was_chosen_stays_when_what_failed_is_retried(installed: Cli) -> None:
    digest = sha256(PICTURE).hexdigest()
    best: dict[str, object] = {"best_of": 2, "by": "brightness"}
    least: dict[str, object] = {"min": {"brightness": 130}, "max_tries": 8}
    lines = [
        {"prompt": f"p {n}", "custom_id": f"{n}{name}", **rule} | image
        for n in range(4)
        for name, rule in (("best", best), ("least", least), ("plain", {}))
        for image in ({"image": f"sha256:{digest}"} if n == 2 else {},)
    ]
    manifest = installed.manifest(*lines)
    given = ("--model", "null", "--score", "statistics", "--wait")
    installed("submit", manifest, "--out", "out", *given, code=1)
    before = chosen(installed.folder / "out")
    assert {name for name in before if name.startswith("2")} == set()
    inputs = installed.folder / "out" / "_inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / digest).write_bytes(PICTURE)
    installed("retry", "out")
    installed("watch", "out")
    after = chosen(installed.folder / "out")
    assert before.items() <= after.items()
    # The images that failed are chosen as if they never had.
    fresh = installed.folder / "calm" / "_inputs"
    fresh.mkdir(parents=True)
    (fresh / digest).write_bytes(PICTURE)
    installed("submit", manifest, "--out", "calm", *given)
    assert chosen(installed.folder / "calm") == after
    assert list(after) == [str(line["custom_id"]) for line in lines]


def chosen(out: Path) -> dict[str, tuple[object, ...]]:
    """What is known of each image that was chosen, and of its rejects."""
    rejects = rows(out / "rejects.jsonl")
    return {
        row["custom_id"]: (
            row["sha256"], row["brightness"], row.get("candidates"),
            *(one.get("sha256") for one in rejects if one["custom_id"] == row["custom_id"]),
        )
        for row in rows(out / "metadata.jsonl")
    }  # fmt: skip


def test_run_survives_a_wiped_broker(installed: Cli, broker: str) -> None:
    manifest = installed.manifest(*circles(40))
    run_id = installed("submit", manifest, "--out", "out", "--model", "null").stdout.strip()
    connect(Settings(broker=broker)).flushall()
    stored = installed.json("status", "out")
    assert (stored["run_id"], stored["state"], stored["source"]) == (
        run_id,
        "unfinished",
        "storage",
    )
    assert "not known to the broker" in installed("status", run_id, code=2).stderr
    installed("resume", "out")
    running = installed.start("worker", "--devices", "cpu", "--models", "null")
    assert installed.json("watch", "out")["summary"]["done"] == 40
    running.terminate()
    running.communicate(timeout=40)
    assert "has finished already" in installed("resume", "out", code=2).stderr
    assert "has finished already" in installed("cancel", "out", code=2).stderr


def test_interrupted_watch_leaves_the_run_alone(installed: Cli) -> None:
    manifest = installed.manifest(*circles(4))
    waiting = installed.start("submit", manifest, "--out", "out", "--model", "null", "--wait")
    run = eventually(lambda: _first(installed.json("status")))
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert f"imagemill watch {run['run_id']}" in said
    assert installed.json("status", "out")["state"] == "running"


@pytest.mark.parametrize("command", ["submit", "status"])
def test_unreachable_broker(cli: Cli, command: str) -> None:
    arguments = [cli.manifest(*circles(2)), "--out", "out"] if command == "submit" else []
    away = cli(command, *arguments, "--broker", "redis://127.0.0.1:1/0", code=1)
    assert "broker redis://127.0.0.1:1/0 cannot be reached" in away.stderr
    assert "check --broker" in away.stderr
    assert not (cli.folder / "out").exists()


def test_unknown_run(installed: Cli) -> None:
    unknown = installed("status", "out", code=2)
    assert "neither the output of a run nor a run id" in unknown.stderr


def _first(listed: list[dict[str, Any]]) -> dict[str, Any] | None:
    return listed[0] if listed else None
