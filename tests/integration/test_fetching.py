"""`imagemill models fetch` against a hub: what it downloads is what is loaded, also offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from jobs.broker.dispatch import start_run
from jobs.errors import FatalError
from jobs.models.fingerprints import fingerprint, route_digest
from jobs.models.table import ModelTable, load_models
from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.records import read_part
from jobs.output.storage import open_storage
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from tests.hub import TOKEN, Hub, serve_hub
from tests.pipelines import tiny
from tests.samples import make_key, make_request
from worker.faults import Unfit
from worker.inputs import Prepared
from worker.pipelines.fetching import fetch_model
from worker.pipelines.load import load_pipeline
from worker.render import BatchRenderer
from worker.renderers import Renderers
from worker.tasks import render
from worker.workshop import Workshop

OLD, NEW = "1" * 40, "2" * 40
ROW = """
default = "m"
[models.m]
repo = "org/sd"
size = [64, 64]
threads = 1
vae = { repo = "org/vae" }
controlnets = { edges = { repo = "org/edges" } }
adapters = { ink = { repo = "org/ink" } }
"""


@pytest.fixture
def hub(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A pipeline in both variants and as a checkpoint, and its parts."""
    folder = tmp_path / "sd"
    shutil.copytree(tiny("sd", pytestconfig), folder)
    for weights in list(folder.rglob("*.safetensors")):
        shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
        weights.with_suffix(".bin").write_bytes(b"pickled")
    (folder / "sd.safetensors").write_bytes(b"all in one")
    repositories = {
        "org/sd": folder,
        "org/vae": tiny("sd-other", pytestconfig) / "vae",
        "org/edges": tiny("controlnet-one", pytestconfig),
        "org/ink": tiny("lora-one", pytestconfig),
    }
    hub = Hub({name: (OLD, where) for name, where in repositories.items()})
    with serve_hub(hub, tmp_path / "cache", monkeypatch):
        yield hub


def table(tmp_path: Path) -> ModelTable:
    file = tmp_path / "models.toml"
    file.write_text(ROW)
    return load_models(file)


def test_what_is_fetched_is_what_is_loaded_also_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = table(tmp_path)
    model = models.get("m")
    assert fetch_model(models, model) == dict.fromkeys(hub.repositories, OLD)
    got = sorted(hub.got)
    assert len(got) == len(set(got))
    assert not [name for name in got if ".fp16" in name or name.endswith(".bin")]
    assert "org/sd/sd.safetensors" not in got
    assert not [name for name in got if name.startswith("org/sd/vae/")]  # another's stands in
    fetch_model(models, model)
    assert sorted(hub.got) == got  # nothing twice

    hub.repositories["org/sd"] = (NEW, hub.repositories["org/sd"][1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    key = make_key(model="m", adapter="ink", steps=2)
    weights = fingerprint(models, model)
    assert weights.revision == OLD
    renderer = BatchRenderer(load_pipeline(models, model, weights, "cpu"))
    asked = make_request(key=key)
    (rendered,) = renderer.render([Prepared(asked)])
    assert rendered.status == "done", rendered.message
    assert sorted(hub.got) == got

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert fingerprint(models, model).revision == OLD  # this machine stays with what it has
    assert fetch_model(models, model)["org/sd"] == NEW
    assert fingerprint(models, model).revision == NEW


def other_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def plan_one(models: ModelTable, folder: Path, name: str) -> Plan:
    manifest = folder / f"{name}.jsonl"
    manifest.write_text('{"prompt": "a circle", "num_inference_steps": 2, "model": "m:ink"}\n')
    return prepare(identify(Job(str(manifest), str(folder / name), models, PlanOptions())))


def test_a_worker_loads_the_commits_of_the_plan_whatever_its_machine_has(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop: Workshop
) -> None:
    models = table(tmp_path)
    fetch_model(models, models.get("m"))  # the worker's machine: it is at OLD
    hub.repositories = {name: (NEW, folder) for name, (_, folder) in hub.repositories.items()}
    with monkeypatch.context() as producer:
        other_machine(tmp_path / "other", producer)
        plan = plan_one(models, tmp_path, "newer")
    assert plan.commits == {
        f"{name}@main": NEW for name in ("org/sd", "org/vae", "org/edges", "org/ink")
    }
    assert route_digest(models, "m:ink") != plan.fingerprints["m:ink"]

    shop.renderers.table = models
    out = open_storage(str(tmp_path / "newer"))
    epoch = start_run(plan, out, shop.runs, shop.dispatcher)
    assert epoch is not None
    render(shop, lambda: None, plan.run_id, epoch, 0, 0)
    (record,) = read_part(out, layout.done_part(plan.run_id, 0, 0))
    assert (record["status"], record["revision"]) == ("done", NEW)
    assert record["fingerprint"] == plan.fingerprints["m:ink"]

    # Its own are not forgotten: calls, and runs that were planned here, are rendered with them.
    key = make_key(model="m", adapter="ink", steps=2)
    shop.renderers.get("m").check_weights(key, route_digest(models, "m:ink"))
    own = shop.renderers.get("m", plan_one(models, tmp_path, "older").commits)
    assert own is shop.renderers.get("m")
    assert {one.commits != frozenset() for one in shop.renderers._loaded} == {True, False}


def test_a_machine_that_has_no_commit_keeps_the_first_that_a_run_names(
    hub: Hub, tmp_path: Path
) -> None:
    models = table(tmp_path)
    renderers = Renderers(models, "cpu", 2)
    planned = {f"{name}@main": OLD for name in hub.repositories}
    hub.repositories = {name: (NEW, folder) for name, (_, folder) in hub.repositories.items()}
    renderer = renderers.get("m", planned)
    assert renderer is renderers.get("m")
    assert fingerprint(models, models.get("m")).revision == OLD


def test_an_offline_worker_without_the_planned_commit_says_what_to_run(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = table(tmp_path)
    fetch_model(models, models.get("m"))
    hub.repositories["org/sd"] = (NEW, hub.repositories["org/sd"][1])
    with monkeypatch.context() as producer:
        other_machine(tmp_path / "other", producer)
        plan = plan_one(models, tmp_path, "out")
    renderers = Renderers(models, "cpu", 2)
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(Unfit, match="imagemill models fetch --for OUT") as unfit:
            renderers.get("m", plan.commits)
    assert not unfit.value.whole  # its own commit renders as before

    environment = {
        "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT,
        "HF_HUB_CACHE": huggingface_hub.constants.HF_HUB_CACHE,
    }
    command = ["--for", str(tmp_path / "out"), "--models-file", str(tmp_path / "models.toml")]
    fetched = subprocess.run(
        [sys.executable, "-m", "worker.commands.fetch", *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"m:ink: org/sd {NEW}" in fetched.stdout
    assert fingerprint(models, models.get("m")).revision == OLD
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    key = make_key(model="m", adapter="ink", steps=2)
    planned = plan.fingerprints["m:ink"]
    renderers.get("m", plan.commits).check_weights(key, planned)


def test_a_gated_repository_says_that_the_token_is_missing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = table(tmp_path)
    hub.gated.add("org/sd")
    weights = fingerprint(models, models.get("m"))
    for attempt in (
        lambda: fetch_model(models, models.get("m")),
        lambda: load_pipeline(models, models.get("m"), weights, "cpu"),
    ):
        with pytest.raises(FatalError, match="HF_TOKEN, which is missing"):
            attempt()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_model(models, models.get("m"))["org/sd"] == OLD


def test_a_repository_that_nobody_has_is_named(hub: Hub, tmp_path: Path) -> None:
    del hub.repositories["org/ink"]
    models = table(tmp_path)
    with pytest.raises(FatalError, match="org/ink"):
        fetch_model(models, models.get("m"))
