"""What mixed manifests cost the device: the demo model, one run each.

    python -m benchmarks.mixes [--images 256] [--rounds 1] [--only '5 x 4 sizes']
    python -m benchmarks.mixes --plan 1000000

useful ÷ slots: images made, of those that the pipeline calls had room for. of full calls: images
a second of the pipeline calls, ÷ those of a manifest that has as many lines of each of the same
keys as fill calls: only what is padded or narrow counts, not how large the images are. limit: the
same, of the calls that cost least if each key had its own (producer/planning/slots.py).
job ÷ script: the same random guidance, by a script that renders and saves one at a time.

--plan: planned only, so many lines of each, and of 1,200 sizes and step counts, and with a guidance
a line of a model that takes one a call.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import (
    COLOURS,
    SHAPES,
    imagemill,
    processor_seconds,
    rate,
    report,
    rows,
    spread,
)
from benchmarks.throughput import loop_rate
from jobs.models.table import builtin_models, load_models
from jobs.settings import load_settings
from producer.planning.resolution import PlanOptions
from producer.planning.slots import cost, fit
from producer.planning.submission import Job, identify, prepare

SIDES = (40, 48, 56, 64, 72)
ADAPTERS = 100

Mix = Callable[[int], dict[str, Any]]  # the fields of line i, besides its custom_id and prompt


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


def guidance_alone(i: int) -> dict[str, Any]:
    """Of a model whose pipeline calls take one each."""
    return guidance(i) | {"model": "null"}


def sizes(i: int) -> dict[str, Any]:
    """30 x 20 sizes, two step counts, which no demo model takes."""
    sides = {"width": 64 + 8 * (i % 30), "height": 64 + 8 * (i // 30 % 20)}
    return sides | {"num_inference_steps": 4 + i // 600 % 2, "model": "null"}


def adapters(i: int) -> dict[str, Any]:
    return {"model": f"shapes:{i % ADAPTERS}"}


def models(i: int) -> dict[str, Any]:
    """With and without an adapter, line by line."""
    return {} if i % 2 else {"model": "shapes:outline"}


def two(i: int) -> dict[str, Any]:
    """Two models, line by line."""
    return {} if i % 2 else {"model": "null"}


def manifest(path: Path, images: int, mix: Mix) -> Path:
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


def counted(mix: Mix, images: int) -> Counter[str]:
    """The lines of each kind."""
    return Counter(json.dumps(mix(i)) for i in range(images))


def _with_adapters(folder: Path) -> Path:
    """The built-in models, with one adapter of the demo model under ADAPTERS names."""
    built_in = builtin_models()
    (folder / "demo").symlink_to(built_in.parent / "demo")
    names = "".join(
        f'[models.shapes.adapters.{i}]\nrepo = "demo/adapters/outline.safetensors"\n'
        for i in range(ADAPTERS)
    )
    (file := folder / "models.toml").write_text(built_in.read_text() + names)
    return file


def full(mix: Mix, images: int, width: int) -> tuple[Mix, int]:
    """The same kinds of lines, so often each that they fill calls, and how many lines these are."""
    kinds = [json.loads(kind) for kind in counted(mix, images)]
    return lambda i: kinds[i // width], len(kinds) * width


def limit(mix: Mix, images: int, width: int) -> float:
    """Device time of full calls ÷ that of the calls that cost least, each of one kind of lines."""
    least = 0.0
    for count in counted(mix, images).values():
        rest = fit(count % width, width) if count % width else ()
        least += count // width * cost(width, width) + sum(cost(slots, width) for slots in rest)
    return images * cost(width, width) / width / least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="mixes whose name has this")
    parser.add_argument("--plan", type=int, metavar="LINES")
    options = parser.parse_args()
    if options.plan:
        if options.only:
            parser.error("--only is of what is rendered, --plan plans all mixes")
        plan_all(options.plan, options.rounds)
    else:
        render_all(options.images, options.rounds, options.only)


def plan_all(lines: int, rounds: int) -> None:
    mixes: dict[str, Mix] = {"one key": one_key, "40 sizes x 3 step counts": buckets}
    mixes |= {"a guidance a line": guidance, "the same, one a call": guidance_alone}
    mixes |= {"1,200 keys": sizes, "100 adapters": adapters, "two models": two}
    table = load_models()
    shapes = table.get("shapes")
    (outline,) = shapes.adapters.values()
    named = {str(i): outline for i in range(ADAPTERS)}
    changed = {"shapes": shapes.model_copy(update={"adapters": named})}
    table = replace(table, models={**table.models, **changed})
    pace: dict[str, list[float]] = {name: [] for name in mixes}
    processor: dict[str, list[float]] = {name: [] for name in mixes}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            for name, mix in mixes.items():
                path = manifest(Path(folder) / "manifest.jsonl", lines, mix)
                job = Job(str(path), f"{folder}/{i}-{name}", table, PlanOptions(model="shapes"))
                started, before = time.perf_counter(), processor_seconds()
                plan = prepare(identify(job))
                pace[name].append(lines / (time.perf_counter() - started))
                processor[name].append((processor_seconds() - before) / lines * 1e6)
                assert plan.requests == lines
    report(
        f"Mixed manifests, {lines} lines each, planned",
        [
            f"{name:28} {median(pace[name]):,.0f} lines/s, ÷ one key's "
            f"{median(pace[name]) / median(pace['one key']):.2f}, "
            f"{median(processor[name]):.2f} µs of a core a line"
            for name in mixes
        ],
    )


def render_all(images: int, rounds: int, only: str) -> None:
    table = load_models(load_settings().models)
    model = table.get("shapes")
    width = model.batch_width
    mixes: dict[str, tuple[Mix, int]] = {
        "one key": (one_key, images),
        "40 sizes x 3 step counts": (buckets, images),
        "5 x 4 sizes x 2 step counts": (fives, images),
        "the same in groups of five": (fives, 192),
        "a guidance a line": (guidance, images),
        "with and without an adapter": (models, images),
        "100 adapters": (adapters, images),
    }
    mixes = {name: mix for name, mix in mixes.items() if only in name}
    useful: dict[str, list[float]] = {name: [] for name in mixes}
    share: dict[str, list[float]] = {name: [] for name in mixes}
    against_script: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        named = _with_adapters(Path(folder))

        def run(name: str, mix: Mix, lines: int) -> tuple[list[dict[str, Any]], float, int]:
            """Rows, and the seconds and slots of all pipeline calls."""
            out = Path(folder) / name
            imagemill(
                "run", str(manifest(path, lines, mix)), "--out", str(out), "--quiet",
                "--model", "shapes", "--devices", "cpu", "--models-file", str(named),
            )  # fmt: skip
            return (records := rows(out)), *spent(records)

        for i in range(rounds):
            fair, whole, _ = run(f"{i}-full", *full(fives, 192, width))
            for name, (mix, lines) in mixes.items():
                records, seconds, slots = run(f"{i}-{name}", mix, lines)
                useful[name].append(len(records) / slots)
                if mix is fives:
                    share[name].append(lines / seconds / (len(fair) / whole))
                if mix is guidance:
                    manifest(path, lines, mix)
                    saved = Path(folder) / f"saved{i}"
                    saved.mkdir()
                    alone = loop_rate(path, model, Path(table.source(model)), 1, str(saved), "cpu")
                    against_script.append(rate(records, 1) / alone)
    report(
        f"Mixed manifests, shapes, {images} images each",
        [f"{name:28} useful ÷ slots {spread(some)}" for name, some in useful.items()]
        + [
            f"{name:28} of full calls {spread(share[name])}, limit {limit(*mixes[name], width):.3f}"
            for name in mixes
            if share[name]
        ]
        + [f"a guidance a line: job ÷ script {spread(one)}" for one in [against_script] if one],
    )


if __name__ == "__main__":
    main()
