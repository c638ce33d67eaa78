"""What Prometheus is told, and that alerts and dashboard ask for nothing else."""

from __future__ import annotations

import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr

from jobs.broker.counters import Counters
from jobs.broker.fleet import Fleet, Worker
from jobs.models.table import load_models
from jobs.output.plan import Chunk, Shard
from jobs.settings import Settings
from producer.api.application import make_api
from producer.api.metrics import Metrics
from producer.api.traffic import Traffic
from producer.api.wire.errors import ApiError
from producer.control.installation import installation
from producer.control.metrics import make_registry
from producer.upkeep.verification import Difference, Verdict, count_verdict
from tests.samples import make_plan
from tests.sites import MODELS
from worker.counts import Counts


@pytest.fixture
def settings(broker: str, tmp_path: Path) -> Settings:
    models = tmp_path / "models.toml"
    models.write_text(MODELS)
    return Settings(broker=broker, models=models)


@pytest.fixture
def registry(settings: Settings) -> CollectorRegistry:
    return make_registry(installation(settings), load_models(settings.models))


@pytest.fixture
def facade_registry(registry: CollectorRegistry) -> CollectorRegistry:
    """What a facade tells, after a request."""
    Traffic(registry).count({"type": "http"}, 200, 0.2)
    return registry


def value(registry: CollectorRegistry, name: str, **labels: str) -> Any:
    return registry.get_sample_value(f"imagemill_{name}", labels)


def test_what_workers_count_is_told(settings: Settings, registry: CollectorRegistry) -> None:
    client = installation(settings).runs.client
    counters = Counters(client, settings.key_prefix)
    counts = Counts(load_models(settings.models).models)
    for adapter in ("", "", "ink"):
        counts.batch("shapes", adapter, [4])
    counts.once("model_loads", "shapes")
    counts.once("model_loads", "/home/somebody/secret-model")
    with counts.timed("shapes", "render"):
        pass
    counts.report(counters)
    counts.batch("shapes", "ink", [2, 2])
    counts.report(counters)
    counts.report(counters)  # nothing is left
    assert value(registry, "batches_total", model="shapes") == 5
    assert value(registry, "slots_total", model="shapes") == 16
    assert value(registry, "adapter_switches_total", model="shapes") == 1
    assert value(registry, "model_loads_total", model="shapes") == 1
    assert value(registry, "model_loads_total", model="other") == 1
    assert value(registry, "stage_seconds_total", model="shapes", stage="render") > 0
    assert b"secret" not in generate_latest(registry)


def test_what_is_outstanding_is_by_model(settings: Settings, registry: CollectorRegistry) -> None:
    known = installation(settings)
    fleet = Fleet(known.runs.client, settings.key_prefix)
    fleet.report(Worker(name="gpu0-1@a", models=("shapes", "null"), device="cuda", host="a", pid=1))
    fleet.report(Worker(name="gpu1-2@a", models=("shapes",), device="cuda", host="a", pid=2))
    fleet.give_up("gpu1-2@a", "shapes", "no memory")
    chunks = (Chunk("shapes", 0, 30), Chunk("null", 30, 40))
    plan = make_plan("0123456789ab", shards=(Shard(40, chunks),))
    epoch = known.runs.open(plan, "memory://out", [])
    attempt = known.runs.attempts.begin(plan.run_id, 0)
    known.runs.attempts.begin(plan.run_id, 0)  # the first one died
    assert known.runs.progress(plan.run_id).models == ("shapes", "null")  # type: ignore[union-attr]
    assert (epoch, attempt.number) != (0, 0)
    pace = load_models(settings.models).models["shapes"].seconds_per_image
    bulk = {"model": "shapes", "kind": "bulk"}
    assert value(registry, "outstanding_requests", **bulk) == 30
    assert value(registry, "outstanding_device_seconds", **bulk) == 30 * pace
    assert value(registry, "outstanding_requests", model="null", kind="bulk") == 10
    assert value(registry, "serving_workers", model="shapes") == 1
    assert value(registry, "workers", state="unfit") == 1
    assert value(registry, "runs", state="running") == 1
    assert value(registry, "chunk_deaths_total") == value(registry, "chunk_retries_total") == 1
    known.runs.set_state(plan.run_id, "paused")
    assert value(registry, "outstanding_requests", **bulk) == 0


def test_memory_of_all_devices_is_told(settings: Settings, registry: CollectorRegistry) -> None:
    assert value(registry, "device_memory_fullest_ratio") == 0
    fleet = Fleet(installation(settings).runs.client, settings.key_prefix)
    for number, memory in enumerate([(60, 80), (10, 20), (0, 0)]):
        fleet.report(Worker(f"gpu{number}-1@a", ("shapes",), "cuda", "a", number, memory=memory))
    assert value(registry, "device_memory_bytes", state="used") == 70
    assert value(registry, "device_memory_bytes", state="total") == 100
    assert value(registry, "device_memory_fullest_ratio") == 0.75


def test_verdicts_are_counted(settings: Settings, registry: CollectorRegistry) -> None:
    changed = Difference("images/00000/a.png", "", "other bytes", {})
    for differences in ([], [changed]):
        count_verdict(installation(settings), Verdict(8, differences))
    assert value(registry, "verified_images_total") == 16
    assert value(registry, "verify_mismatches_total") == 1


def test_a_scrape_costs_the_same_whatever_lies_in_the_broker(
    settings: Settings, registry: CollectorRegistry
) -> None:
    client, prefix = installation(settings).runs.client, settings.key_prefix
    before = len(generate_latest(registry).splitlines())
    client.hset(f"{prefix}counters", mapping={f"requests m{i} done": 1 for i in range(1000)})
    client.hset(f"{prefix}counters", "requests shapes done", "nonsense")
    client.zadd(f"{prefix}runs", {f"run-{i}": i for i in range(1000)})
    client.hset(f"{prefix}run:run-1", mapping={"state": "running", "models": "nonsense"})
    client.set(f"{prefix}run:run-2", "no hash")
    calls = client.info("commandstats")["cmdstat_hmget"]["calls"]
    assert len(generate_latest(registry).splitlines()) == before
    assert client.info("commandstats")["cmdstat_hmget"]["calls"] == calls + 1 + 1000
    assert value(registry, "requests_total", model="shapes", status="done", code="") == 0


def test_no_broker_is_a_value_too(tmp_path: Path) -> None:
    known = installation(Settings(broker=f"redis+socket://{tmp_path}/none.sock"))
    text = generate_latest(make_registry(known, load_models())).decode()
    assert re.findall(r"^imagemill_.*$", text, re.MULTILINE) == ["imagemill_broker_up 0.0"]


@pytest.mark.parametrize(
    ("token", "is_open", "given", "admitted"),
    [
        (None, True, None, True),
        (None, False, "a team's key", False),
        ("right", False, "right", True),
        ("right", True, None, False),
        ("right", False, "wrong", False),
    ],
)
def test_who_may_read_the_facades_metrics(
    token: str | None, is_open: bool, given: str | None, admitted: bool
) -> None:
    told = Metrics(CollectorRegistry(), SecretStr(token) if token else None)
    with nullcontext() if admitted else pytest.raises(ApiError, match="IMAGEMILL_METRICS_TOKEN"):
        told.check(given, is_open)


MONITORING = Path(__file__).parents[2] / "configs/monitoring"


def expressions() -> list[str]:
    """What alerts and dashboard ask Prometheus."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    panels = orjson.loads((MONITORING / "dashboard.json").read_bytes())["panels"]
    return [rule["expr"] for rule in rules] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


def test_alerts_and_dashboard_ask_for_what_is_told(facade_registry: CollectorRegistry) -> None:
    beside = ("_created", "_seconds_sum", "_seconds_count")  # by prometheus_client
    told = {
        sample.name: set(sample.labels)
        for family in facade_registry.collect()
        for sample in family.samples
        if not sample.name.endswith(beside)
    }
    asked = {name for text in expressions() for name in re.findall(r"imagemill_\w+", text)}
    assert asked == set(told)  # nothing is told in vain either
    for text in expressions():
        for name, matchers in re.findall(r"(imagemill_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)\s*[!=]", matchers)) <= told[name], text


def test_the_page_names_what_is_told(facade_registry: CollectorRegistry) -> None:
    page = (MONITORING.parents[1] / "docs/17-operation.md").read_text("utf-8")
    page = page.split("## Metrics")[1].split("## Logs")[0]
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in facade_registry.collect()
    }
    assert set(re.findall(r"`(imagemill_\w+)`", page)) == told


@pytest.mark.promtool
def test_promtool_finds_nothing_wrong(facade_registry: CollectorRegistry, tmp_path: Path) -> None:
    """`make monitoring`. The dashboard's expressions are checked as if they were rules."""
    rules = [
        {"record": f"panel:{i}", "expr": text.replace("$__rate_interval", "5m")}
        for i, text in enumerate(expressions())
    ]
    panels = tmp_path / "panels.yml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for what in (
        ("rules", MONITORING / "alerts.yml"),
        ("config", "--syntax-only", MONITORING / "prometheus.yml"),  # its secret lies elsewhere
        ("rules", panels),
    ):
        done = subprocess.run(["promtool", "check", *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(facade_registry),
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_routes_are_templates_whatever_was_asked(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    store = settings.model_copy(
        update={"store": str(tmp_path), "signing_file": tmp_path / "signing.key"}
    )
    client = TestClient(make_api(store, load_models(settings.models)), "http://127.0.0.1")
    for path in ("/openai/v1/files/file-secret", "/nowhere/secret", "/healthz"):
        client.get(path)
    text = client.get("/metrics").text
    counted = set(re.findall(r"http_requests_total\{(.*)\} 1.0", text))
    assert counted == {
        'route="/openai/v1/files/{file_id}",status="404"',
        'route="other",status="404"',
        'route="/healthz",status="200"',
    }
    assert "secret" not in text
