"""A pipeline's own JSON files say enough for a row of the models table."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.models.fingerprints import fingerprint
from jobs.models.hub import cached_commit, remember
from jobs.models.inspection import inspect_folder
from jobs.models.table import Model, load_models
from producer.report.models import toml_row
from producer.upkeep.inspection import inspect_source
from tests.hub import Hub, serve_hub


def pipeline(folder: Path, name: str, files: dict[str, Any], **index: Any) -> Path:
    for path, content in {"model_index.json": {"_class_name": name} | index, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    return folder


VAE = {"vae/config.json": {"block_out_channels": [1, 2, 3, 4]}}


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        (
            "StableDiffusionPipeline",
            VAE | {"unet/config.json": {"sample_size": 64}},
            {"family": "stable-diffusion", "size": [512, 512], "batch_width": 8, "strength": 0.8},
        ),
        (
            "StableDiffusionXLPipeline",
            VAE | {"unet/config.json": {"sample_size": 128}},
            {"family": "stable-diffusion-xl", "size": [1024, 1024], "batch_width": 1},
        ),
        (
            "FluxPipeline",
            {"transformer/config.json": {"guidance_embeds": True}},
            {"takes": ["generate", "edit", "inpaint", "guidance_scale", "strength"], "steps": 28},
        ),
        (
            "FluxPipeline",
            {"transformer/config.json": {"guidance_embeds": False}},
            {"takes": ["generate", "edit", "inpaint", "strength"], "steps": 4},
        ),
        ("Flux2KleinPipeline", {}, {"max_inputs": 10, "size_multiple": 16}),
        ("FluxFillPipeline", {}, {"takes": ["inpaint", "guidance_scale", "strength"]}),
        (
            "SomebodysPipeline",
            VAE | {"transformer/config.json": {"sample_size": 32}},
            {"size": [256, 256], "batch_width": 1},
        ),
    ],
)
def test_rows(tmp_path: Path, name: str, files: dict[str, Any], expected: dict[str, Any]) -> None:
    row = inspect_folder(pipeline(tmp_path, name, files), "org/name")
    assert row["repo"] == "org/name"
    assert {field: row[field] for field in expected} == expected
    assert Model.model_validate(row).repo == "org/name"


def test_the_printed_row_can_be_pasted(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "Some Model.1", "Flux2KleinPipeline", {}, is_distilled=True)
    name, row = inspect_source(str(folder), None)
    file = tmp_path / "models.toml"
    file.write_text(f'default = "{name}"\n{toml_row(name, row)}\n')
    assert tomllib.loads(file.read_text())["models"][name] == row
    model = load_models(file).get(name)
    assert (name, model.steps, model.takes) == ("some-model-1", 4, ("generate", "edit"))


def test_a_folder_that_is_no_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no model_index\.json"):
        inspect_folder(tmp_path, "here")


def test_a_folder_named_in_a_manifest_is_what_its_files_say(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "Flux2KleinPipeline", {})
    model = load_models().get(str(folder))
    assert (model.family, model.max_inputs) == ("flux2-klein", 10)


SD = VAE | {"unet/config.json": {"sample_size": 64}}


def test_a_repository_that_a_manifest_names_is_what_its_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pipeline(tmp_path / "sd", "StableDiffusionPipeline", SD)
    (folder / "unet/model.safetensors").write_text("weights")
    hub = Hub({"org/sd": ("1" * 40, folder)})
    with serve_hub(hub, tmp_path / "cache", monkeypatch):
        table = load_models()
        model = table.get("org/sd")
        assert (model.size, model.batch_width, model.guidance_scale) == ((512, 512), 8, 7.5)
        assert "edit" in model.takes
        assert not [name for name in hub.got if name.endswith(".safetensors")]
        got = list(hub.got)
        assert table.get("org/sd") == model
        # The same as that of a worker that was told nothing; and nothing holds this machine to it.
        assert fingerprint(table, model) == fingerprint(table, Model(repo="org/sd"))
        assert cached_commit("org/sd", None) is None
        assert hub.got == got
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert load_models().get("org/sd") == Model(repo="org/sd")  # nobody can tell
        remember("org/sd", None, "1" * 40)
        assert load_models().get("org/sd") == model


@pytest.mark.parametrize("index", [None, "StableDiffusionPipeline"])
def test_a_repository_that_tells_nothing_of_use_is_taken_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str | None
) -> None:
    files = {"unet/config.json": {"sample_size": 0.5}}
    folder = pipeline(tmp_path / "sd", index, files) if index else tmp_path
    with serve_hub(Hub({"org/sd": ("1" * 40, folder)}), tmp_path / "cache", monkeypatch):
        found = load_models().get("org/sd")
    assert found.repo == "org/sd"
    assert found.size == ((512, 512) if index else (1024, 1024))


def test_no_more_repositories_are_asked_than_a_manifest_may_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def look_up(repo: str) -> Model:
        asked.append(repo)
        return Model(repo=repo)

    monkeypatch.setattr("jobs.models.table._look_up", look_up)
    table = load_models()
    for number in range(100):
        assert table.get(f"org/{number}").repo == f"org/{number}"
        assert table.get("org/0").repo == "org/0"
    assert len(asked) == 16
