"""`imagemill inbox` from the shell."""

from __future__ import annotations

import signal

import orjson
import pytest

from tests.support import Cli, circles


def test_an_inbox_from_the_shell(cli: Cli, broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    (cli.folder / "in").mkdir()
    cli.manifest(*circles(3)).rename(cli.folder / "in" / "first.jsonl")
    options = ("--out", "out/{name}", "--model", "null", "--every", 0.1, "--json")
    watching = cli.start("inbox", "in", *options)

    def news() -> dict[str, str]:
        assert watching.stdout is not None
        told: dict[str, str] = orjson.loads(watching.stdout.readline())
        return told

    assert news()["what"] == "watched"
    first = news()
    assert (first["subject"], first["what"]) == ("first.jsonl", "accepted")
    cli.manifest({"promt": "x"}).rename(cli.folder / "in" / "second.jsonl")
    assert news()["text"].startswith("1 invalid line, the first: line 1: prompt: is required")
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=20)
    assert (watching.returncode, "Stopped." in said, "Traceback" in said) == (0, True, False)
    assert (cli.folder / "in/accepted/first.jsonl").is_file()
    assert (cli.folder / "in/rejected/second.jsonl").is_file()
    assert cli.json("status", "out/first")["requests"] == 3
    assert "Put {name} into it" in cli("inbox", "in", "--out", "o", code=2).stderr
    assert "nowhere is no folder" in cli("inbox", "nowhere", "--out", "o/{name}", code=2).stderr
    wrong = ("inbox", "in", "--out", "o/{name}", "--model", "nope")
    assert "unknown model" in cli(*wrong, code=2).stderr


def test_what_an_inbox_tells_as_a_json_log(
    cli: Cli, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    monkeypatch.setenv("IMAGEMILL_LOG_FORMAT", "json")
    (cli.folder / "in").mkdir()
    cli.manifest(*circles(3)).rename(cli.folder / "in" / "first.jsonl")
    told = cli("inbox", "in", "--out", "out/{name}", "--model", "null", "--once").stderr
    (line,) = map(orjson.loads, told.splitlines())
    assert line["level"] == "INFO"
    assert (line["subject"], line["what"]) == ("first.jsonl", "accepted")
    assert line["run_id"] in line["message"]
    watching = cli.start("inbox", "in", "--out", "out/{name}", "--model", "null")
    assert watching.stderr is not None
    assert orjson.loads(watching.stderr.readline())["what"] == "watched"
    cli.manifest(*circles(2)).rename(cli.folder / "in" / "second.jsonl")
    assert orjson.loads(watching.stderr.readline())["subject"] == "second.jsonl"
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=20)
    assert orjson.loads(said)["message"].startswith("Stopped.")
