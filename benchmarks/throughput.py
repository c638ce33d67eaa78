"""A whole job against bare diffusers loops, alternating in one run.

    python -m benchmarks.throughput [--images 1024] [--rounds 3] [--model shapes] [--device cpu]

job ÷ loop: against an in-memory loop at the same batch width, threads and steps that saves nothing;
it runs before and after each job, as the pace of a shared machine drifts.
job ÷ script: against a script that renders and saves one image at a time with the same pipeline.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import imagemill, rate, report, rows, spread, write_manifest
from jobs.models.table import Model, ModelTable, load_models
from jobs.settings import load_settings

_LOOP = """
import json, sys, time
from pathlib import Path
import torch
from diffusers import DiffusionPipeline

folder, manifest, out, width, threads, steps, guidance, size, dtype, device = sys.argv[1:]
lines = [json.loads(line) for line in open(manifest)]
torch.set_num_threads(int(threads))
pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).to(device)
pipeline.set_progress_bar_config(disable=True)

def render(batch, first):
    return pipeline(
        prompt=[line["prompt"] for line in batch],
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        width=int(size),
        height=int(size),
        generator=[torch.Generator("cpu").manual_seed(first + i) for i in range(len(batch))],
        output_type="np" if out == "-" else "pil",
    ).images

width = int(width)
render(lines[:width], 0)  # warm
started = time.perf_counter()
for first in range(0, len(lines), width):
    images = render(lines[first : first + width], first)
    if out != "-":
        for i, image in enumerate(images):
            image.save(Path(out) / f"{first + i}.jpg", quality=95)
print(len(lines) / (time.perf_counter() - started))
"""


def loop_rate(
    manifest: Path, model: Model, folder: Path, width: int, out: str, device: str
) -> float:
    """Images a second of a bare loop in a process of its own; out "-" keeps them in memory."""
    arguments = [
        folder, manifest, out, width, model.threads, model.steps, model.guidance_scale,
        model.size[0], model.dtype, device,
    ]  # fmt: skip
    command = [sys.executable, "-c", _LOOP, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@dataclass(frozen=True, slots=True)
class Rates:
    """Images a second in each round; the loop has a round more, as it runs around each job.

    records: the metadata of the last job's images.
    """

    job: list[float]
    loop: list[float]
    script: list[float]
    records: list[dict[str, Any]]

    @property
    def ratios(self) -> list[float]:
        """The job's rate by that of the loops before and after it."""
        beside = [(before + after) / 2 for before, after in pairwise(self.loop)]
        return [one / other for one, other in zip(self.job, beside, strict=True)]


def compare(
    table: ModelTable, name: str, images: int, rounds: int, device: str, script: bool = True
) -> Rates:
    """Render a manifest as a job and in loops. script: also one image at a time, a quarter of it.

    device: "cpu", or "cuda" for the first GPU.
    """
    model = table.get(name)
    folder, width = Path(table.source(model)), model.batch_width
    found = Rates([], [], [], [])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        manifest = write_manifest(work / "manifest.jsonl", images)
        short = write_manifest(work / "short.jsonl", images // 4)
        found.loop.append(loop_rate(manifest, model, folder, width, "-", device))
        for number in range(rounds):
            out = work / f"out{number}"
            imagemill(
                "run", str(manifest), "--out", str(out), "--quiet", "--model", name,
                "--devices", "cpu" if device == "cpu" else first_gpu(),
            )  # fmt: skip
            found.records[:] = rows(out)
            found.job.append(rate(found.records, width))
            found.loop.append(loop_rate(manifest, model, folder, width, "-", device))
            if script:
                saved = work / f"saved{number}"
                saved.mkdir()
                found.script.append(loop_rate(short, model, folder, 1, str(saved), device))
    return found


def first_gpu() -> str:
    """What --devices calls the GPU that torch takes first."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    table = load_models(load_settings().models)
    width = table.get(options.model).batch_width
    found = compare(table, options.model, options.images, options.rounds, options.device)
    scripted = [one / other for one, other in zip(found.job, found.script, strict=True)]
    report(
        f"Throughput, {options.model}, {options.images} images, width {width}",
        [
            f"job                      {spread(found.job)} images/s",
            f"bare loop, width {width:<7} {spread(found.loop)} images/s",
            f"script, one at a time    {spread(found.script)} images/s",
            f"job ÷ loop               {spread(found.ratios)}",
            f"job ÷ script             {spread(scripted)}",
        ],
    )


if __name__ == "__main__":
    main()
