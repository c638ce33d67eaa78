"""`imagemill usage` against a device that meters itself, through real processes."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from jobs.broker.connection import connect
from jobs.settings import Settings
from tests.facades import Premises, make_premises, stop
from tests.support import eventually, rows

DEVICE = Path(__file__).parent / "device"
MODELS = """
default = "slow"

[models.slow]
repo = "null:"
takes = ["generate"]
batch_width = 4
call_slots = [1, 4]
size = [64, 64]
steps = 8
threads = 1
seconds_per_image = 2.0
options = { sleep = 0.2 }

[models.warm]
repo = "null:"
takes = ["generate"]
batch_width = 4
size = [64, 64]
steps = 4
threads = 1
seconds_per_image = 2.0
options = { sleep = 0.1, compile = true }
"""
WARM_UP = "0" * 32  # the job id of what nobody asked for


@dataclass(frozen=True)
class Site:
    """A facade and workers with two devices that meter themselves."""

    premises: Premises
    url: str
    keys: dict[str, str]  # by team

    def submit(self, team: str, model: str, lines: list[dict[str, Any]], *options: str) -> str:
        """Submit a manifest; returns its output."""
        name = f"{team}-{model}"
        manifest = self.premises.folder / f"{name}.jsonl"
        manifest.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        out = str(self.premises.folder / "runs" / name)
        self.run("submit", str(manifest), "--out", out, "--team", team, "--model", model, *options)
        return out

    def run(self, *args: str) -> str:
        done = self.premises.run(*args)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(self, team: str, prompt: str) -> int:
        """The status of the answer to a call."""
        answer = httpx.post(
            f"{self.url}/v1/images/generations",
            json={"prompt": f"{team}: {prompt}"},
            headers={"Authorization": f"Bearer {self.keys[team]}"},
            timeout=60,
        )
        return answer.status_code

    def used(self, by: str) -> dict[str, dict[str, Any]]:
        """What `imagemill usage` says of runs and store, by name."""
        places = str(self.premises.folder / "runs"), str(self.premises.store)
        found = json.loads(self.run("usage", *places, "--by", by, "--json"))
        return {one.pop("name"): one for one in found}

    @property
    def metered(self) -> list[dict[str, Any]]:
        file = self.premises.folder / "meter.jsonl"
        return rows(file) if file.exists() else []

    def finished(self, out: str) -> bool:
        file = Path(out) / "run.json"
        return json.loads(file.read_bytes())["state"] == "finished"


@pytest.fixture
def site(tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PYTHONPATH", str(DEVICE), prepend=os.pathsep)
    monkeypatch.setenv("DEVICE_METER", str(tmp_path / "meter.jsonl"))
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    premises = make_premises(tmp_path)
    (tmp_path / "models.toml").write_text(MODELS)
    keys = {team: premises.key(team) for team in ("red", "blue", "green")}
    facade, url = premises.serve("serve")
    try:
        yield Site(premises, url, keys)
    finally:
        stop(facade, premises.log("serve"))


def lines(team: str, count: int, **more: Any) -> list[dict[str, Any]]:
    kinds = {3: "fails", 10: "unsafe", 11: "unsafe"}
    return [
        {"custom_id": f"{team}-{i}", "prompt": f"{team}: {kinds.get(i, 'a circle')} {i}", **more}
        for i in range(count)
    ]


def batch(site: Site, team: str) -> None:
    """A batch over HTTP, to its end."""
    line = {"method": "POST", "url": "/v1/images/generations"}
    content = b"".join(
        orjson.dumps(line | {"custom_id": str(i), "body": {"prompt": f"{team}: a batch {i}"}})
        + b"\n"
        for i in range(6)
    )
    with httpx.Client(
        base_url=f"{site.url}/openai/v1",
        headers={"Authorization": f"Bearer {site.keys[team]}"},
        timeout=30,
    ) as client:
        file = {"file": ("in.jsonl", content)}
        sent = client.post("/files", data={"purpose": "batch"}, files=file).json()
        asked = {"endpoint": "/v1/images/generations", "completion_window": "24h"}
        made = client.post("/batches", json=asked | {"input_file_id": sent["id"]}).json()
        where = f"/batches/{made['id']}"
        eventually(lambda: client.get(where).json()["status"] == "completed", 60)


@contextmanager
def at_work(site: Site) -> Iterator[None]:
    """Two devices, which end once what they are at is stored."""
    workers = site.premises.start("worker", "--devices", "cpu", "--workers", "2")
    try:
        yield
        workers.terminate()
        assert workers.wait(30) == 0
    finally:
        workers.kill()
        workers.wait()


def kill_one_device(site: Site) -> int:
    """SIGKILL to a process in the middle of a chunk; returns its id."""
    pid: int = eventually(lambda: [line["pid"] for line in site.metered], 60)[0]
    psutil.Process(pid).kill()
    return pid


def calls_until_one_preempts(site: Site) -> int:
    """Calls, one after the other, until one was rendered between two steps of a run's batch."""
    for number in range(1, 40):
        assert site.call("green", "one of many calls") == 200
        if any(line["away"] > 0.1 for line in site.metered):
            return number
    raise AssertionError("no call was rendered between steps")


def lost(metered: list[dict[str, Any]], killed: int) -> list[dict[str, Any]]:
    """The calls of a killed process whose requests were rendered once more."""
    others = {job for line in metered if line["pid"] != killed for job, _ in line["requests"]}
    return [
        line
        for line in metered
        if line["pid"] == killed and all(job in others for job, _ in line["requests"])
    ]


@pytest.mark.timeout(600)  # a busy machine starts twenty processes slowly
def test_usage_is_what_the_devices_meter(site: Site, broker: str) -> None:
    """Within 2 %: teams, models, failures, rounds, calls between steps, and batches.

    What a killed process had rendered and not stored is missing, and rendered again.
    """
    outs = [
        site.submit("red", "slow", lines("red", 240)),
        site.submit("blue", "warm", lines("blue", 16), "--choose", json.dumps(CHOICE), *SCORED),
        site.submit("green", "slow", lines("green", 9, num_inference_steps=4)),
    ]
    prompts = ["a call", "a call that fails", "another call", "unsafe call"]
    with at_work(site), ThreadPoolExecutor(8) as callers:
        killed = kill_one_device(site)
        codes = list(callers.map(lambda prompt: site.call("green", prompt), prompts * 2))
        made = calls_until_one_preempts(site)
        batch(site, "blue")
        eventually(lambda: all(map(site.finished, outs)), 120)
    assert sorted(set(codes)) == [200, 422, 500]

    metered = site.metered
    wasted = lost(metered, killed)
    by_team: defaultdict[str, float] = defaultdict(float)
    for line in metered:
        if line not in wasted:
            team = line["requests"][0][1].partition(":")[0]
            assert all(prompt.startswith(team) for _, prompt in line["requests"])
            by_team["" if line["requests"][0][0] == WARM_UP else team] += line["seconds"]
    assert by_team.pop("") > 0  # of a model that is compiled, which nobody pays for
    assert sum(line["seconds"] for line in wasted) < 4.0  # of one chunk

    found = site.used("team")
    print(by_team, found, sum(line["seconds"] for line in wasted))
    assert found.keys() == by_team.keys() == {"red", "blue", "green"}
    for team, seconds in by_team.items():
        assert found[team]["device_seconds"] == pytest.approx(seconds, rel=0.02), team
    counts = {team: (one["images"], one["rejected"], one["failed"]) for team, one in found.items()}
    assert counts["red"] == (237, 2, 1)
    assert counts["green"] == (8 + 4 + made, 2, 1 + 2)
    total = sum(by_team.values())
    for by in ("model", "run", "day"):
        assert sum(one["device_seconds"] for one in site.used(by).values()) == pytest.approx(
            total, rel=0.02
        )
    assert {"slow", "warm"} == site.used("model").keys()
    assert "calls" in site.used("run")

    connect(Settings(broker=broker)).flushall()
    assert site.used("team") == found
    places = str(site.premises.folder / "runs"), str(site.premises.store)
    sheet = csv.DictReader(StringIO(site.run("usage", *places, "--by", "team", "--csv")))
    assert {one["name"]: float(one["device_seconds"]) for one in sheet} == {
        team: one["device_seconds"] for team, one in found.items()
    }


CHOICE = {"best_of": 2, "by": "brightness", "min": {"brightness": 100}, "max_tries": 4}
SCORED = ("--score", "statistics")
