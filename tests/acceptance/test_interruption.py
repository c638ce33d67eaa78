"""`imagemill run` interrupted in every way: nothing is left behind, lost or doubled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.support import Cli, circles, eventually, rows

REQUESTS = 4000  # some seconds of the null renderer


COMMAND = ["run", "manifest.jsonl", "--out", "out", "--model", "null", "--format", "png"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The sha256 of each image of a run that nothing disturbed."""
    cli = Cli(tmp_path_factory.mktemp("undisturbed"), mark="")
    cli.manifest(*circles(REQUESTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cli.folder / "cache"))
        cli(*COMMAND)
    return [row["sha256"] for row in rows(cli.folder / "out" / "metadata.jsonl")]


def test_interrupted_run_stops_and_goes_on(
    cli: Cli, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the end of its terminal, which is as good as Ctrl-C."""
    cli.manifest(*circles(REQUESTS))
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short enough for sockets in it
        monkeypatch.setenv("TMPDIR", folder)
        usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        running = cli.start(*COMMAND)
        signal.signal(signal.SIGHUP, usual)
        eventually(lambda: _images(cli.folder / "out"))
        assert os.listdir(folder)
        running.send_signal(signal.SIGHUP)
        _, said = running.communicate(timeout=60)
        assert os.listdir(folder) == []
    assert running.returncode == 130, said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    eventually(lambda: not cli.processes(), 5)
    stored = _images(cli.folder / "out")
    assert 0 < stored < REQUESTS
    _assert_completed(cli, expected)


@pytest.mark.parametrize("victim", ["run", "broker", "worker"])
def test_killed_run_completes_with_the_same_bytes(
    cli: Cli, expected: list[str], victim: str
) -> None:
    cli.manifest(*circles(REQUESTS))
    running = cli.start(*COMMAND)
    eventually(lambda: _images(cli.folder / "out"))
    _kill(cli, running, victim)
    if victim == "worker":  # it is started again
        _, said = running.communicate(timeout=120)
        assert running.returncode == 0, said
    else:
        _, said = running.communicate(timeout=60)
        assert running.returncode == (-signal.SIGKILL if victim == "run" else 1)
        assert victim == "run" or "Run the same command again to go on" in said
        eventually(lambda: not cli.processes(), 5)
    _assert_completed(cli, expected)


def _kill(cli: Cli, running: subprocess.Popen[str], victim: str) -> None:
    if victim == "run":
        running.kill()
        return
    word = {"broker": "valkey-server", "worker": "worker.process.parent"}[victim]
    (process,) = [p for p in cli.processes() if word in " ".join(p.cmdline())]
    process.kill()


def _assert_completed(cli: Cli, expected: list[str]) -> None:
    """The same command completes the dataset, and it is the one that nothing disturbed."""
    assert cli.json(*COMMAND)["summary"]["done"] == REQUESTS
    found = rows(cli.folder / "out" / "metadata.jsonl")
    assert [row["index"] for row in found] == list(range(REQUESTS))
    assert _images(cli.folder / "out") == REQUESTS
    assert [row["sha256"] for row in found] == expected


def _images(out: Path) -> int:
    return sum(1 for _ in out.glob("images/*/[!.]*.png"))


@pytest.fixture
def slow(cli: Cli) -> Path:
    """The models table of a model that takes half a second for two images."""
    models = cli.folder / "models.toml"
    models.write_text(
        'default = "slow"\n[models.slow]\nrepo = "null:"\nsize = [64, 64]\n'
        "batch_width = 2\noptions = { sleep = 0.5 }\n"
    )
    return models


def test_a_folder_takes_one_run_at_a_time(cli: Cli, slow: Path) -> None:
    cli.manifest(*circles(400))
    command = ("run", "manifest.jsonl", "--out", "out", "--models-file", slow)
    running = cli.start(*command)
    eventually(lambda: (cli.folder / "out" / "_run").exists())
    refused = cli(*command, code=2).stderr
    assert f"another imagemill run renders into {cli.folder}/out, or fsck mends it" in refused
    assert "another --out" in refused
    running.kill()
    running.communicate(timeout=60)
    eventually(lambda: not cli.processes(), 10)
    assert cli.json(*command, "--limit", "2")["summary"]["done"] == 2


def test_the_page_of_a_run_lives_as_long_as_its_command(cli: Cli, slow: Path) -> None:
    cli.manifest(*circles(400))
    running = cli.start("run", "manifest.jsonl", "--out", "out", "--models-file", slow, "--page")
    found = None
    while found is None:
        found = re.search(r"The page: (http://127\.0\.0\.1:\d+)(/runs/[0-9a-f]+)", line(running))
    page, run = found.groups()
    eventually(lambda: "400" in httpx.get(page + run).text)
    assert run in httpx.get(page).text
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    eventually(lambda: not cli.processes(), 5)


def line(running: subprocess.Popen[str]) -> str:
    """The next line that a command says."""
    assert running.stderr
    said = running.stderr.readline()
    assert said, "the command has ended"
    return said
