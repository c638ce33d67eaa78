"""On CUDA in bfloat16: a pixel does not depend on its neighbours, and noise is the CPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.fingerprints import fingerprint
from jobs.models import load_models
from jobs.requests import BatchKey, Request
from tests.pipelines import tiny
from worker.inputs import Prepared
from worker.pipelines import load_pipeline
from worker.render import BatchRenderer

pytestmark = pytest.mark.gpu

KEY = BatchKey("generate", "m", "", 64, 64, 4, 3.0)
PROMPTS = ["a red circle", "", "a large green star on a blue background", "🟥 دائرة"]


def load(name: str, folder: Path, config: pytest.Config, device: str, dtype: str) -> BatchRenderer:
    file = folder / "models.toml"
    file.write_text(
        f'default = "m"\n[models.m]\nrepo = "{tiny(name, config)}"\nbatch_width = 4\n'
        f'size = [64, 64]\nthreads = 1\ndtype = "{dtype}"\n'
    )
    table = load_models(file)
    model = table.get("m")
    return BatchRenderer(load_pipeline(table, model, fingerprint(table, model), device))


def asked(edits: bool) -> list[Prepared]:
    key = replace(KEY, task="edit", inputs=1) if edits else KEY
    image = Image.effect_noise((64, 64), 80).convert("RGB")
    return [
        Prepared(
            Request(seed, str(seed), key, prompt, "", seed, "png", f"{seed:032x}"),
            (image,) if edits else (),
        )
        for seed, prompt in enumerate(PROMPTS)
    ]


NAMES = ["sd", "sdxl", "sd3", "flux", "kontext", "klein"]


@pytest.mark.parametrize(
    ("name", "edits"),
    [*((name, False) for name in NAMES), *((name, True) for name in [*NAMES, "pix2pix"])],
)
def test_pixels_do_not_depend_on_neighbours(
    name: str, edits: bool, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    renderer = load(name, tmp_path, pytestconfig, "cuda", "bfloat16")
    requests = asked(edits)
    together = [one.pixels for one in renderer.render(requests)]
    backwards = [one.pixels for one in renderer.render(requests[::-1])][::-1]
    for first, second in zip(together, backwards, strict=True):
        assert first is not None
        np.testing.assert_array_equal(first, second)
    (alone,) = renderer.render(requests[:1])
    np.testing.assert_array_equal(alone.pixels, together[0])


def test_the_same_seed_is_the_same_picture_on_both_devices(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    requests = asked(edits=False)
    cpu, cuda = (
        [
            one.pixels
            for one in load("sd", tmp_path, pytestconfig, device, "float32").render(requests)
        ]
        for device in ("cpu", "cuda")
    )
    for first, second in zip(cpu, cuda, strict=True):
        assert first is not None
        assert second is not None
        assert np.abs(first - second).max() < 0.02


def test_memory_that_runs_out_is_a_record_with_the_bytes(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    renderer = load("sd", tmp_path, pytestconfig, "cuda", "float32")
    renderer.render(asked(edits=False))
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        huge = replace(KEY, width=2048, height=2048)
        requests = [replace(one, request=one.request._replace(key=huge)) for one in asked(False)]
        rendered = renderer.render(requests)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {one.code for one in rendered} == {"out_of_memory"}
    assert "bytes more were needed" in rendered[0].message
