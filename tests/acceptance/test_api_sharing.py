"""`imagemill up`: two on one store, and what it says."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.facades import Premises, make_premises, stop
from tests.support import eventually

LINES = 400


def batch(url: str) -> str:
    """The id of a new batch."""
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/images/generations",
            "body": {"prompt": f"picture {number}"},
        }
        for number in range(LINES)
    ]
    file = httpx.post(
        f"{url}/openai/v1/files",
        data={"purpose": "batch"},
        files={"file": ("in.jsonl", "\n".join(map(json.dumps, lines)))},
    ).json()
    body = {
        "input_file_id": file["id"],
        "endpoint": "/v1/images/generations",
        "completion_window": "24h",
    }
    return str(httpx.post(f"{url}/openai/v1/batches", json=body).json()["id"])


def completed(url: str, batch_id: str) -> int:
    """How many requests of a batch are done once it is completed; 0 until then."""
    found = httpx.get(f"{url}/openai/v1/batches/{batch_id}").json()
    return int(found["request_counts"]["completed"]) if found["status"] == "completed" else 0


def brokers(process: Any) -> list[str]:
    """The names of the servers that a process keeps."""
    names = [child.name() for child in psutil.Process(process.pid).children(recursive=True)]
    return [name for name in names if "server" in name]


def urls(premises: Premises) -> list[str]:
    return re.findall(r"Ready: (http://\S+)", premises.log("up").read_text())


def test_the_second_says_so_and_serves_and_goes_on_alone(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    home, beside = make_premises(tmp_path / "first"), make_premises(tmp_path / "second")
    one, first = home.serve("up", "--models", "null")
    other, second = beside.serve("up", "--models", "null", IMAGEMILL_STORE=str(home.store))
    try:
        assert "Another imagemill up works on this store" in beside.log("up").read_text()
        # At one broker, whose claims hold for chunks, calls and batches: nothing is done twice.
        assert (len(brokers(one)), len(brokers(other))) == (1, 0)
        made = batch(second)
        eventually(lambda: completed(first, made) == LINES, 60)

        one.send_signal(signal.SIGINT)
        assert one.wait(30) == 0
        third = eventually(lambda: [*urls(beside), ""][1], 60)
        assert len(brokers(other)) == 1
        assert httpx.post(f"{third}/v1/images/generations", json={"prompt": "x"}).is_success
        assert completed(third, made) == LINES
    finally:
        one.kill()
        stop(other, beside.log("up"))


def test_logs_of_all_processes_are_objects(tmp_path: Path) -> None:
    premises = make_premises(tmp_path)
    server, url = premises.serve("up", "--models", "null", "--log-format", "json")
    stop(server, log := premises.log("up"))
    said = [json.loads(line)["message"] for line in log.read_text().splitlines()]
    assert f"Ready: {url} (Ctrl-C stops)" in said
    assert any(message.startswith("Its broker: --broker") for message in said)
