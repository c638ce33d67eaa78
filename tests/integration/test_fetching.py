"""`imagemill models fetch` against a hub: what it downloads is what is loaded, also offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import FatalError
from jobs.models.fingerprints import fingerprint
from jobs.models.table import ModelTable, load_models
from jobs.requests import BatchKey, Request
from tests.hub import TOKEN, Hub, serve_hub
from tests.pipelines import tiny
from worker.inputs import Prepared
from worker.pipelines.fetching import fetch_model
from worker.pipelines.load import load_pipeline
from worker.render import BatchRenderer

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
    key = BatchKey("generate", "m", "ink", 64, 64, 2, 3.0)
    weights = fingerprint(models, model)
    assert weights.revision == OLD
    renderer = BatchRenderer(load_pipeline(models, model, weights, "cpu"))
    asked = Request(0, "", key, "a circle", "", 1, "png", "0" * 32)
    (rendered,) = renderer.render([Prepared(asked)])
    assert rendered.status == "done", rendered.message
    assert sorted(hub.got) == got

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert fingerprint(models, model).revision == OLD  # this machine stays with what it has
    assert fetch_model(models, model)["org/sd"] == NEW
    assert fingerprint(models, model).revision == NEW


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
