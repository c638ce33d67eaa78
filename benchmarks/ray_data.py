"""A whole job against Ray Data, alternating in one run.

    make ray    # or, with PYTHONPATH=.venv/ray: python -m benchmarks.ray_data [--rounds 3]

The same manifest, seeds, model, slots, threads and image format. Ray Data renders in an actor that
loads the model once, and encodes and stores in tasks beside it. Both rates count from the end of
the first batch to the last stored image, so that no start is in them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import imagemill, rate, report, rows, spread, write_manifest
from jobs.formats import FORMATS
from jobs.models.table import Model, load_models
from jobs.settings import load_settings

_SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np
import ray
from PIL import Image

folder, manifest, out, width, threads, steps, guidance, size, how = sys.argv[1:]
out, width, how = Path(out), int(width), json.loads(how)

class Renderer:
    def __init__(self):
        import torch
        from diffusers import DiffusionPipeline

        torch.set_num_threads(int(threads))
        self.seeded = lambda seed: torch.Generator("cpu").manual_seed(int(seed))
        self.pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, batch):
        images = self.pipeline(
            prompt=list(batch["prompt"]),
            num_inference_steps=int(steps),
            guidance_scale=float(guidance),
            width=int(size),
            height=int(size),
            generator=[self.seeded(seed) for seed in batch["seed"]],
            output_type="np",
        ).images
        batch["rendered_at"] = [time.time()] * len(images)
        return batch | {"pixels": (images * 255).round().astype(np.uint8)}

def save(batch):
    pixels = batch.pop("pixels")
    batch["file_name"] = [f"{name}.jpg" for name in batch["custom_id"]]
    batch["created_at"] = []
    for name, image in zip(batch["file_name"], pixels):
        Image.fromarray(image).save(out / name, **how)
        batch["created_at"].append(time.time())
    return batch

ray.init(include_dashboard=False, log_to_driver=False)
data = ray.data.read_json(manifest)
# Of one processor, as tasks need one beside it.
data = data.map_batches(
    Renderer, batch_size=width, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
)
data.map_batches(save, batch_size=width).write_json(str(out / "metadata"))

files = (out / "metadata").glob("*.json")
rows = [json.loads(line) for file in files for line in file.open()]
# It stores in blocks, which are some batches: the first of them is not to start the clock.
seconds = max(row["created_at"] for row in rows) - min(row["rendered_at"] for row in rows)
print((len(rows) - width) / seconds)
"""


def ray_rate(manifest: Path, model: Model, folder: Path, out: Path) -> float:
    """Images a second of Ray Data, in processes of its own."""
    how = FORMATS["jpeg"]
    arguments = [
        folder, manifest, out, model.batch_width, model.threads, model.steps, model.guidance_scale,
        model.size[0], json.dumps({"format": how.pillow, **how.options}),
    ]  # fmt: skip
    # It would give all others on this machine precedence over its own processes.
    environment = os.environ | {"RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", _SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="shapes")
    options = parser.parse_args()
    table = load_models(load_settings().models)
    model = table.get(options.model)
    jobs, others = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        manifest = write_manifest(work / "manifest.jsonl", options.images, seeded=True)
        for number in range(options.rounds):
            out, saved = work / f"out{number}", work / f"saved{number}"
            imagemill(
                "run", str(manifest), "--out", str(out), "--quiet", "--model", options.model,
                "--devices", "cpu",
            )  # fmt: skip
            jobs.append(rate(rows(out), model.batch_width))
            saved.mkdir()
            others.append(ray_rate(manifest, model, Path(table.source(model)), saved))
            print(f"round {number + 1}: {jobs[-1]:.1f} and {others[-1]:.1f} images/s", flush=True)
    report(
        f"Beside Ray Data, {options.model}, {options.images} images, width {model.batch_width}",
        [
            f"job             {spread(jobs)} images/s",
            f"Ray Data        {spread(others)} images/s",
            f"job ÷ Ray Data  {spread([a / b for a, b in zip(jobs, others, strict=True)])}",
        ],
    )


if __name__ == "__main__":
    main()
