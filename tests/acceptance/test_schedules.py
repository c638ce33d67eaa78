"""`imagemill schedule` from the shell."""

from __future__ import annotations

import signal
from pathlib import Path

import orjson
import pytest

from tests.support import Cli, circles

FILE = """
state = "state"
[schedules.nightly]
cron = "0 3 * * *"
timezone = "Europe/Berlin"
manifest = "manifest.jsonl"
out = "out/{date}/{time}"
model = "null"
"""


@pytest.fixture
def scheduled(cli: Cli, broker: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line with a broker and a schedules.toml."""
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    cli.manifest(*circles(3))
    (cli.folder / "schedules.toml").write_text(FILE)
    return cli


def test_a_schedule_from_the_shell(scheduled: Cli) -> None:
    worker = scheduled.start("worker", "--devices", "cpu", "--models", "null")
    upcoming = scheduled.json("schedule", "next", "nightly", "--count", 2)
    assert [one["nominal"][10:] for one in upcoming] == ["T03:00:00+01:00"] * 2
    ended = scheduled.json("schedule", "run-now", "nightly", "--wait")
    assert ended["summary"]["done"] == 3
    (entry,) = scheduled.json("schedule", "history", "nightly")
    assert (entry["state"], entry["manual"], entry["done"]) == ("finished", True, 3)
    assert Path(entry["out"], "metadata.jsonl").is_file()
    paused = scheduled.json("schedule", "pause", "nightly", "--reason", "holidays")
    assert paused["paused"].startswith("holidays, since")
    assert "schedule resume nightly goes on" in scheduled("schedule", "list").stdout
    assert scheduled.json("schedule", "resume", "nightly")["paused"] == ""
    worker.terminate()
    worker.communicate(timeout=40)


def test_run_says_what_happens_and_ends_with_ctrl_c(scheduled: Cli) -> None:
    running = scheduled.start("schedule", "run", "--json")
    assert running.stdout is not None
    first = orjson.loads(running.stdout.readline())
    assert (first["subject"], first["what"], first["text"]) == ("schedules.toml", "read", "nightly")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 0
    assert "Stopped." in said
    assert "Traceback" not in said


def test_a_mistake_is_named_and_ends_with_2(scheduled: Cli) -> None:
    (scheduled.folder / "bad.toml").write_text(FILE.replace("0 3", "0 24"))
    refused = scheduled("schedule", "run", "--schedules-file", "bad.toml", code=2)
    assert "bad.toml is wrong" in refused.stderr
    assert "nightly.cron: bad hour" in refused.stderr
    assert "It has: nightly" in scheduled("schedule", "pause", "daily", code=2).stderr
