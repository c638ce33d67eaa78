"""`imagemill models list`: where weights are, by a hub's cache that is made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.models.table import load_models
from producer.upkeep.weights import Weights, find_weights
from tests.support import Cli

COMMIT, OTHER = "a" * 40, "b" * 40

TABLE = f"""
default = "xl"
[models.xl]
repo = "org/xl"
dtype = "bfloat16"
vae = {{ repo = "org/vae", revision = "{OTHER}" }}
[models.xl.controlnets.canny]
repo = "org/canny"
[models.xl.adapters.ink]
repo = "ink.safetensors"
[models.nothing]
repo = "null:"
"""
CARD = "---\nlicense: other\nlicense_name: stabilityai-ai-community\n---\nlicense: none of it\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def keep(cache: Path, repo: str, commit: str, files: dict[str, str], ref: str = "main") -> Path:
    """As the hub's library keeps files: blobs, links to them, and the commit of a branch."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    snapshot = root / "snapshots" / commit
    (root / "blobs").mkdir(exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        blob = root / "blobs" / f"{number}"
        blob.write_text(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def listed(folder: Path) -> dict[str, Weights]:
    file = folder / "models.toml"
    file.write_text(TABLE)
    (folder / "ink.safetensors").write_text("12345")
    return {f"{one.model} {one.part}".strip(): one for one in find_weights(load_models(file))}


def index(**components: object) -> str:
    return json.dumps({"_class_name": "StableDiffusionXLPipeline"} | components)


WHOLE = {
    "model_index.json": index(
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        image_encoder=[None, None],
        force_zeros_for_empty_prompt=True,
    ),
    "unet/model.safetensors.index.json": json.dumps({"weight_map": {"a": "1.safetensors"}}),
    "unet/1.safetensors": "x" * 1000,
    "README.md": CARD,
}


def test_what_is_absent_is_told_and_a_folder_is_found(tmp_path: Path, cache: Path) -> None:
    found = listed(tmp_path)
    assert not cache.exists()
    assert [*found] == ["xl", "xl vae", "xl controlnet canny", "xl adapter ink"]
    assert {name: one.state for name, one in found.items() if name != "xl adapter ink"} == {
        "xl": "absent",
        "xl vae": "absent",
        "xl controlnet canny": "absent",
    }
    ink = found["xl adapter ink"]
    assert (ink.state, ink.bytes, ink.commit) == ("here", 5, "")
    assert ink.folder == str(tmp_path / "ink.safetensors")


def test_what_the_cache_has_is_told(tmp_path: Path, cache: Path) -> None:
    where = keep(cache, "org/xl", COMMIT, WHOLE)
    keep(cache, "org/vae", OTHER, {"a.safetensors": "12"})
    keep(cache, "org/canny", COMMIT, {"config.json": "{}"})
    found = listed(tmp_path)
    xl = found["xl"]
    # Its vae is in no folder, and needs not be: another takes its place.
    assert (xl.state, xl.commit, xl.folder) == ("here", COMMIT, str(where))
    assert xl.bytes == sum(map(len, WHOLE.values()))
    assert (xl.license, xl.dtype) == ("stabilityai-ai-community", "bfloat16")
    assert (found["xl vae"].state, found["xl vae"].commit) == ("here", OTHER)
    assert found["xl controlnet canny"].state == "absent"  # its small files alone


@pytest.mark.parametrize("lacking", ["unet/1.safetensors", "scheduler"])
def test_what_is_there_in_part_is_told(tmp_path: Path, cache: Path, lacking: str) -> None:
    files = WHOLE | {"text_encoder/1.safetensors": "x"}
    if lacking == "scheduler":
        files["model_index.json"] = index(scheduler=["diffusers", "DDIMScheduler"])
    where = keep(cache, "org/xl", COMMIT, files)
    if lacking != "scheduler":
        (where / lacking).resolve().unlink()  # its link leads nowhere, as during a download
    assert listed(tmp_path)["xl"].state == "partly here"


def test_a_pinned_commit_that_the_cache_lacks_is_absent(tmp_path: Path, cache: Path) -> None:
    keep(cache, "org/vae", COMMIT, {"a.safetensors": "12"})
    assert listed(tmp_path)["xl vae"].state == "absent"


def test_the_command(cli: Cli) -> None:
    told = {(row["model"], row["part"]): row for row in cli.json("models", "list")}
    assert told["shapes", ""]["state"] == "here"
    assert told["shapes", "adapter outline"]["folder"].endswith("outline.safetensors")
    assert ("null", "") not in told
    shown = cli("models", "list").stdout
    assert shown.count(" here ") == len(told)
    assert "fetch" not in shown
