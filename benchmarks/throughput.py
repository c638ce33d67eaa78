"""A whole job against bare diffusers loops, alternating in one run.

    python -m benchmarks.throughput [--images 1024] [--rounds 3] [--model shapes] [--device cpu]

job ÷ loop: against an in-memory loop at the same batch width, threads and steps that saves nothing;
it runs before and after each job, as the pace of a shared machine drifts.
job ÷ script: against a script that renders and saves one image at a time with the same pipeline.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.measure import imagemill, rate, report, rows, spread, write_manifest
from jobs.models.table import Model, load_models
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    table = load_models(load_settings().models)
    model, device = table.get(options.model), options.device
    folder = Path(table.source(model))
    job: list[float] = []
    loop: list[float] = []
    script: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        manifest = write_manifest(work / "manifest.jsonl", options.images)
        short = write_manifest(work / "short.jsonl", options.images // 4)
        loop.append(loop_rate(manifest, model, folder, model.batch_width, "-", device))
        for i in range(options.rounds):
            out = work / f"out{i}"
            imagemill(
                "run", str(manifest), "--out", str(out), "--quiet", "--model", options.model,
                "--devices", "cpu" if device == "cpu" else "0",
            )  # fmt: skip
            job.append(rate(rows(out), model.batch_width))
            loop.append(loop_rate(manifest, model, folder, model.batch_width, "-", device))
            saved = work / f"saved{i}"
            saved.mkdir()
            script.append(loop_rate(short, model, folder, 1, str(saved), device))
    beside = [(before + after) / 2 for before, after in pairwise(loop)]
    report(
        f"Throughput, {options.model}, {options.images} images, width {model.batch_width}",
        [
            f"job                      {spread(job)} images/s",
            f"bare loop, width {model.batch_width:<7} {spread(loop)} images/s",
            f"script, one at a time    {spread(script)} images/s",
            f"job ÷ loop               {spread([a / b for a, b in zip(job, beside, strict=True)])}",
            f"job ÷ script             {spread([a / b for a, b in zip(job, script, strict=True)])}",
        ],
    )


if __name__ == "__main__":
    main()
