"""A real Prometheus that watches real processes: every panel shows something, every alert is rated.

`make monitoring`; Debian's prometheus must be installed.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml

from jobs.broker.fleet import Fleet, Worker
from jobs.settings import Settings
from producer.control.installation import installation
from producer.upkeep.verification import Difference, Verdict, count_verdict
from tests.chaos.conftest import FAULTS
from tests.chaos.servers import free_port
from tests.facades import Premises, make_premises, stop
from tests.support import circles, eventually

MONITORING = Path(__file__).parents[2] / "configs/monitoring"
PANELS = [
    (panel["title"], target["expr"])
    for panel in orjson.loads((MONITORING / "dashboard.json").read_bytes())["panels"]
    for target in panel["targets"]
]
TOKEN = "secret-of-prometheus"


@dataclass(frozen=True)
class Prometheus:
    """A running one; since: when it began, in Unix seconds."""

    url: str
    since: float

    def ask(self, path: str, **query: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=10)
        assert answer.status_code != 400, answer.text
        return answer.raise_for_status().json()["data"]

    def value(self, text: str) -> float:
        """The sum of what an expression has now."""
        return sum(float(one["value"][1]) for one in self.ask("query", query=text)["result"])

    def drawn(self, text: str) -> list[float]:
        """All values that a panel has drawn until now."""
        found = self.ask("query_range", query=text, start=self.since, end=time.time(), step=1)
        values = [float(value) for one in found["result"] for _, value in one["values"]]
        return [value for value in values if math.isfinite(value)]

    def alerts(self) -> dict[str, Any]:
        (group,) = self.ask("rules")["groups"]
        return {rule["name"]: rule for rule in group["rules"]}


def configure(folder: Path, exporter: str, facade: str) -> Path:
    """The project's own configuration, with places of this machine, and in a hurry."""
    own = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    own["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    own["rule_files"] = [str(MONITORING / "alerts.yml")]
    for job, url in zip(own["scrape_configs"], (exporter, facade), strict=True):
        job["static_configs"] = [{"targets": [httpx.URL(url).netloc.decode()]}]
    (folder / "token").write_text(TOKEN)
    own["scrape_configs"][1]["authorization"]["credentials_file"] = str(folder / "token")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(own))
    return folder / "prometheus.yml"


@pytest.fixture
def premises(tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch) -> Premises:
    monkeypatch.setenv("IMAGEMILL_BROKER", broker)
    monkeypatch.setenv("IMAGEMILL_METRICS_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
    monkeypatch.setenv("CHAOS_DISK", str(tmp_path / "full"))
    return make_premises(tmp_path)


@pytest.fixture
def facade(premises: Premises) -> Iterator[str]:
    process, url = premises.serve("serve")
    yield url
    stop(process, premises.log("serve"))


@pytest.fixture
def prometheus(premises: Premises, facade: str) -> Iterator[Prometheus]:
    exporter, url = premises.serve("exporter")
    try:
        file, place = configure(premises.folder, url, facade), f"127.0.0.1:{free_port()}"
        command = ["prometheus", f"--config.file={file}", f"--web.listen-address={place}"]
        with premises.log("prometheus").open("wb") as log:
            process = subprocess.Popen(
                [*command, f"--storage.tsdb.path={premises.folder}/tsdb"], stdout=log, stderr=log
            )
        try:
            found = Prometheus(f"http://{place}", time.time())
            eventually(lambda: is_up(found), 60)
            yield found
        finally:
            process.kill()
            process.wait()
    finally:
        stop(exporter, premises.log("exporter"))


def is_up(prometheus: Prometheus) -> bool:
    try:
        return prometheus.value("up") == 2
    except httpx.HTTPError:  # it starts, and says 503 for a moment
        return False


@pytest.fixture
def worker(premises: Premises) -> Iterator[None]:
    process = premises.start("worker", "--devices", "cpu", "--models", "null,slow")
    yield
    stop(process, premises.log("worker"))


def submit(premises: Premises, name: str, lines: list[dict[str, Any]], *options: str) -> int:
    manifest = premises.folder / f"{name}.jsonl"
    manifest.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    out = str(premises.folder / name)
    return premises.run("submit", str(manifest), "--out", out, *options).returncode


@pytest.mark.promtool
@pytest.mark.usefixtures("worker")
def test_every_panel_shows_and_every_alert_is_rated(
    premises: Premises, facade: str, prometheus: Prometheus, broker: str
) -> None:
    settings = Settings(broker=broker)
    gpu = Worker("gpu0-1@a", ("null",), "cuda", "a", 1, memory=(60, 80))
    known = installation(settings)
    Fleet(known.runs.client, settings.key_prefix).report(gpu)  # what this machine has not
    forbidden = {"prompt": "a circle", "image": "http://127.0.0.1:1/a.png", "model": "null"}
    lines = [*circles(16), forbidden]
    assert submit(premises, "first", lines, "--model", "slow", "--wait") == 1
    answer = httpx.post(f"{facade}/v1/images/generations", json={"prompt": "a circle"}, timeout=60)
    assert answer.status_code == 200
    (premises.folder / "full").touch()
    submit(premises, "second", circles(4), "--model", "null")
    changed = Difference("images/00000/a.png", "", "other bytes", {})
    count_verdict(known, Verdict(8, [changed]))

    def missing() -> list[tuple[str, str]]:
        texts = {text: text.replace("$__rate_interval", "1m") for _, text in PANELS}
        return [(title, text) for title, text in PANELS if not prometheus.drawn(texts[text])]

    eventually(lambda: not missing(), 60)
    (premises.folder / "full").unlink()
    done = 'imagemill_requests_total{model="slow",status="done"}'
    eventually(lambda: prometheus.value(done) == 16)
    assert prometheus.value("imagemill_http_requests_total") > 0

    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    alerts = eventually(lambda: is_rated(prometheus) and prometheus.alerts())
    assert alerts.keys() == {rule["alert"] for rule in rules}
    states = {"ImagemillVerifyMismatch": "firing", "ImagemillStorageErrors": "pending"}
    for name, state in states.items():
        eventually(lambda n=name, s=state: prometheus.alerts()[n]["state"] == s)
    for name in ("ImagemillExporterAbsent", "ImagemillBrokerDown", "ImagemillSchedulesFail"):
        assert alerts[name]["state"] == "inactive"


def is_rated(prometheus: Prometheus) -> bool:
    """Whether each alert's expression has been evaluated, without an error."""
    alerts = prometheus.alerts().values()
    assert not [one for one in alerts if one["health"] == "err"]
    return all(one["health"] == "ok" for one in alerts)
