"""Masked edits through the command line and the real client: what is not masked stays as it is."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from configs.demo.training.scenes import PALETTE
from tests.facades import Premises, stop
from tests.support import Cli, eventually, rows

CIRCLE = (Path(__file__).parents[2] / "configs/examples/images/red-circle.png").read_bytes()
PROMPT = "a large green circle on a blue background"


def mask(size: tuple[int, int] = (64, 64), alpha: bool = True) -> bytes:
    """Its right half is transparent, or white on black."""
    image = Image.new("RGBA" if alpha else "L", size, "black")
    image.paste((0, 0, 0, 0) if alpha else 255, (size[0] // 2, 0, *size))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def assert_half(made: bytes) -> None:
    """The left half is the input's, to the pixel, and the right half is green."""
    before, after = (pixels(data) for data in (CIRCLE, made))
    assert np.array_equal(after[:, :32], before[:, :32])
    assert math.dist(before[32, 40], PALETTE["red"]) < 90
    assert math.dist(after[32, 40], PALETTE["green"]) < 90, after[32, 40]


def pixels(data: bytes) -> NDArray[np.int_]:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"), int)


def test_masked_edits_become_a_dataset(cli: Cli) -> None:
    """Both kinds of masks are one; what has another size, or cannot, has its line and reason."""
    files = {"circle": CIRCLE, "alpha": mask(), "white": mask(alpha=False), "small": mask((32, 64))}
    for name, data in files.items():
        (cli.folder / f"{name}.png").write_bytes(data)
    edit = {"prompt": PROMPT, "image": "circle.png", "response_format": "png", "seed": 1}
    manifest = cli.manifest(
        {"custom_id": "alpha", "mask_image": "alpha.png", **edit},
        {"custom_id": "white", "mask_image": {"image": b64encode(files["white"]).decode()}, **edit},
        {"custom_id": "whole", **edit},
    )
    out = cli.folder / "out"
    cli("run", manifest, "--out", out)
    done = {row["custom_id"]: row for row in rows(out / "metadata.jsonl")}
    made = {name: (out / row["file_name"]).read_bytes() for name, row in done.items()}
    assert_half(made["alpha"])
    assert np.array_equal(pixels(made["alpha"]), pixels(made["white"]))
    row = done["alpha"]
    assert (row["task"], row["pipeline"]) == ("inpaint", "StableDiffusionInpaintPipeline")
    assert row["input_images"] == done["whole"]["input_images"]
    assert (out / "_inputs" / row["mask_image"].removeprefix("sha256:")).read_bytes() == mask()
    verdict = cli.json("verify", out, "--sample", 3)
    assert (verdict["compared"], verdict["differences"]) == (3, [])

    wrong = cli.manifest(
        {"mask_image": "small.png", **edit},
        {"mask_image": "alpha.png", **edit, "model": "shapes-edits"},
        {"mask_image": "alpha.png", "prompt": "no image"},
    )
    refused = cli("run", wrong, "--out", cli.folder / "none", code=2).stderr
    assert "line 1: mask_image: 32 x 64 pixels, but the image has 64 x 64" in refused
    assert "line 2: mask_image: shapes-edits cannot inpaint" in refused
    assert "line 3: mask_image: belongs to the image of an edit" in refused


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Of an installation with the demo models."""
    premises = Premises(tmp_path_factory.mktemp("masks"))
    (premises.folder / "models.toml").write_text("")
    builtin = str(Path(__file__).parents[2] / "configs/models.toml")
    process, url = premises.serve("up", "--models", "shapes,shapes-edits", IMAGEMILL_MODELS=builtin)
    try:
        with OpenAI(base_url=f"{url}/openai/v1", api_key="any", max_retries=0) as client:
            yield client
    finally:
        stop(process, premises.log("up"))


def test_the_client_repaints_what_is_transparent(client: OpenAI) -> None:
    made = client.images.edit(
        image=("circle.png", CIRCLE), mask=("mask.png", mask()), prompt=PROMPT, n=2
    )
    for one in made.data or []:
        assert_half(httpx.get(one.url or "").content)


def test_the_client_is_told_what_is_wrong_with_a_mask(client: OpenAI) -> None:
    def edit(mask_data: bytes, images: int = 1, **options: Any) -> str:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.edit(
                image=[(f"{number}.png", CIRCLE) for number in range(images)],
                mask=("mask.png", mask_data),
                prompt="x",
                **options,
            )
        assert refused.value.param == "mask"
        return str(refused.value.body["message"])  # type: ignore[index]

    assert edit(mask((32, 64))) == "mask: 32 x 64 pixels, but the image has 64 x 64"
    assert edit(mask(), model="shapes-edits") == "mask: shapes-edits cannot inpaint"
    assert edit(mask(), 2) == "mask: belongs to one image, but 2 are given"
    assert edit(mask()[:-40]) == "mask: the image file is damaged"


def test_a_batch_has_masks_too(client: OpenAI) -> None:
    """By URL and by file; one that does not fit costs its own line only."""
    file = client.files.create(file=("mask.png", mask()), purpose="vision")
    small = f"data:image/png;base64,{b64encode(mask((32, 64))).decode()}"
    image = {"image_url": f"data:image/png;base64,{b64encode(CIRCLE).decode()}"}
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/images/edits",
            "body": {"prompt": PROMPT, "images": [image], "mask": one},
        }
        for number, one in enumerate(({"file_id": file.id}, {"image_url": small}))
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    given = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=given.id, endpoint="/v1/images/edits", completion_window="24h"
    )

    def ended() -> Any:
        now = client.batches.retrieve(batch.id)
        return now if now.status in ("completed", "failed") else None

    found = eventually(ended, 60)
    (done,) = map(json.loads, client.files.content(found.output_file_id).text.splitlines())
    assert_half(httpx.get(done["response"]["body"]["data"][0]["url"]).content)
    (wrong,) = map(json.loads, client.files.content(found.error_file_id).text.splitlines())
    error = wrong["response"]["body"]["error"]
    assert "32 x 64 pixels, but the image has 64 x 64" in error["message"]
