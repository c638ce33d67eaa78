"""Edits through the command line: inputs of several kinds, one that cannot be had, and again."""

from __future__ import annotations

import math
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image

from configs.demo.training.scenes import PALETTE
from tests.support import Cli, rows

EXAMPLES = Path(__file__).parents[2] / "configs/examples"


def test_edits_become_a_dataset(cli: Cli) -> None:
    shutil.copy(EXAMPLES / "images/red-circle.png", cli.folder / "circle.png")
    inline = b64encode((cli.folder / "circle.png").read_bytes()).decode()
    edit = {"prompt": "a green circle on a blue background", "strength": 0.5}
    manifest = cli.manifest(
        {"custom_id": "file", "image": "circle.png", **edit},
        {"custom_id": "inline", "image": {"image": inline}, "seed": 3, **edit},
        {"custom_id": "gone", "image": "http://127.0.0.1:9/cat.png", **edit},
        {"custom_id": "drawn", "prompt": "a red circle on a white background"},
    )
    out = cli.folder / "out"
    cli("run", manifest, "--out", out, code=1)
    done = {row["custom_id"]: row for row in rows(out / "metadata.jsonl")}
    (error,) = rows(out / "errors.jsonl")
    assert list(done) == ["file", "inline", "drawn"]
    assert (error["custom_id"], error["status"], error["code"]) == (
        "gone", "rejected", "input_forbidden",
    )  # fmt: skip
    assert done["file"]["pipeline"] == "StableDiffusionImg2ImgPipeline"
    # However it was written, the same bytes lie in storage once.
    assert done["file"]["input_images"] == done["inline"]["input_images"]
    assert len(list((out / "_inputs").iterdir())) == 1
    assert done["drawn"]["prompt_tokens_cut"] == 0

    dataset = load_dataset("imagefolder", data_dir=str(out), split="train")
    assert len(dataset) == 3
    assert dataset[0]["image"].size == (64, 64)

    verdict = cli.json("verify", out, "--sample", 3)
    assert (verdict["compared"], verdict["differences"]) == (3, [])


def test_a_missing_local_input_is_refused_with_its_line(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "a"}, {"prompt": "b", "image": "nowhere.png"})
    refused = cli("run", manifest, "--out", cli.folder / "out", code=2)
    assert "line 2: image: " in refused.stderr
    assert "nowhere.png: No such file" in refused.stderr


def test_the_demo_variants_do_as_they_are_told(cli: Cli) -> None:
    shutil.copytree(EXAMPLES / "images", cli.folder / "images")
    lines = [
        {**line, "custom_id": f"{name}/{line['custom_id']}"}
        for name in ("instructions", "controlnet", "adapters")
        for line in rows(EXAMPLES / f"{name}.jsonl")
    ]
    out = cli.folder / "out"
    cli("run", cli.manifest(*lines), "--out", out)
    done = {row["custom_id"]: row for row in rows(out / "metadata.jsonl")}
    assert list(done) == [line["custom_id"] for line in lines]

    def pixel(name: str, x: int, y: int) -> tuple[int, ...]:
        found = Image.open(out / done[name]["file_name"]).convert("RGB").getpixel((x, y))
        assert isinstance(found, tuple)
        return found

    def is_near(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        return math.dist(found, wanted) < 60

    red, green = PALETTE["red"], PALETTE["green"]
    assert is_near(pixel("instructions/colour", 32, 32), green)
    assert is_near(pixel("controlnet/two", 18, 32), red)
    assert is_near(pixel("controlnet/two", 46, 32), PALETTE["blue"])
    assert done["controlnet/circle"]["pipeline"] == "StableDiffusionControlNetPipeline"
    assert done["controlnet/without-edges"]["pipeline"] == "StableDiffusionPipeline"
    assert is_near(pixel("adapters/filled", 32, 32), red)
    assert is_near(pixel("adapters/batch-form", 32, 32), PALETTE["black"])


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXAMPLES.glob("*.jsonl"))])
def test_the_examples_are_valid(cli: Cli, name: str) -> None:
    scores = ("--score", "shapes") if name == "select" else ()
    found = cli.json("plan", EXAMPLES / f"{name}.jsonl", *scores)
    assert (found["invalid"], found["requests"] > 0) == (0, True)
