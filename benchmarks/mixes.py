"""What mixed manifests cost the device: the demo model, one run each.

    python -m benchmarks.mixes [--images 256] [--rounds 1]

useful ÷ slots: images made, of those that the pipeline calls had room for. work: pixels times steps
a second of the pipeline calls, so it compares manifests by what they make of a device's time.
job ÷ script: the same random guidance, by a script that renders and saves one at a time.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import COLOURS, SHAPES, imagemill, rate, report, rows, spread
from benchmarks.throughput import loop_rate
from jobs.models.table import load_models
from jobs.settings import load_settings

SIDES = (40, 48, 56, 64, 72)


def one_key(_: int) -> dict[str, Any]:
    return {}


def buckets(i: int) -> dict[str, Any]:
    side = {"width": SIDES[i % 5], "height": 40 + 8 * (i // 5 % 8)}
    return side | {"num_inference_steps": 4 + i // 40 % 3}


def fives(i: int) -> dict[str, Any]:
    """Groups of about five, of 192 lines: 5 x 4 sizes, two step counts."""
    sides = {"width": SIDES[i % 5], "height": SIDES[i // 5 % 4]}
    return sides | {"num_inference_steps": 4 + i // 20 % 2}


def guidance(i: int) -> dict[str, Any]:
    return {"guidance_scale": round(random.Random(i).uniform(1, 7), 3)}


def models(i: int) -> dict[str, Any]:
    """Two models, line by line."""
    return {} if i % 2 else {"model": "shapes:outline"}


def manifest(path: Path, images: int, mix: Callable[[int], dict[str, Any]]) -> Path:
    with path.open("w") as file:
        for i in range(images):
            colour, shape = COLOURS[i % len(COLOURS)], SHAPES[i // len(COLOURS) % len(SHAPES)]
            prompt = f"a large {colour} {shape} on a blue background"
            file.write(json.dumps({"custom_id": f"{i:06d}", "prompt": prompt} | mix(i)) + "\n")
    return path


def spent(records: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds and slots of all pipeline calls."""
    calls = {
        (row["worker"], row["batch_started"]): (
            row["seconds_render"] * row["batch_images"],
            row["batch_width"],
        )
        for row in records
    }
    return sum(one for one, _ in calls.values()), sum(slots for _, slots in calls.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    table = load_models(load_settings().models)
    model = table.get("shapes")
    mixes = {"one key": one_key, "40 sizes x 3 step counts": buckets, "groups of five": fives}
    mixes |= {"a guidance a line": guidance, "with and without an adapter": models}
    useful: dict[str, list[float]] = {name: [] for name in mixes}
    pace: dict[str, list[float]] = {name: [] for name in mixes}
    against_script: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(options.rounds):
            base = 0.0
            for name, mix in mixes.items():
                lines = 192 if mix is fives else options.images
                path = manifest(Path(folder) / "manifest.jsonl", lines, mix)
                out = Path(folder) / f"{i}-{name.replace(' ', '-')}"
                imagemill(
                    "run", str(path), "--out", str(out), "--quiet", "--model", "shapes",
                    "--devices", "cpu",
                )  # fmt: skip
                records = rows(out)
                seconds, slots = spent(records)
                useful[name].append(len(records) / slots)
                work = sum(r["width"] * r["height"] * r["num_inference_steps"] for r in records)
                base = base or work / seconds
                pace[name].append(work / seconds / base)
                if mix is guidance:
                    saved = Path(folder) / f"saved{i}"
                    saved.mkdir()
                    alone = loop_rate(path, model, Path(table.source(model)), 1, str(saved), "cpu")
                    against_script.append(rate(records, 1) / alone)
    report(
        f"Mixed manifests, shapes, {options.images} images each",
        [
            f"{name:28} useful ÷ slots {spread(useful[name])}   "
            f"work a device second ÷ one key's {spread(pace[name])}"
            for name in mixes
        ]
        + [f"a guidance a line: job ÷ script {spread(against_script)}"],
    )


if __name__ == "__main__":
    main()
