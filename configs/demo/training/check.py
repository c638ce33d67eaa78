"""Render held-out scenes with a demo model and judge every picture by measurement.

python -m configs.demo.training.check --model configs/demo/shapes --scenes 400 --seed 0
python -m configs.demo.training.check --self-test
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from configs.demo.training.drawing import draw
from configs.demo.training.judge import Pixels, Verdict, judge
from configs.demo.training.parts import stock
from configs.demo.training.scenes import KINDS, SIDE, Kind, Scene, every_scene, held_out

SHARES: dict[Kind, float] = {"one": 0.5, "counted": 0.25, "paired": 0.25}


def choose(count: int, seed: int) -> list[Scene]:
    """Held-out scenes in the proportions of SHARES; a kind with too few is gone through again."""
    lots = random.Random(seed)
    kept = [scene for scene in every_scene() if held_out(scene)]
    chosen: list[Scene] = []
    for kind in KINDS:
        group = [scene for scene in kept if scene.kind == kind]
        wanted = round(count * SHARES[kind])
        rounds = -(-wanted // len(group))
        chosen += [s for _ in range(rounds) for s in lots.sample(group, len(group))][:wanted]
    return chosen


def render(
    model: Path, scenes: list[Scene], seed: int, steps: int, guidance: float, batch: int
) -> Iterator[Pixels]:
    """Pictures of the scenes' canonical captions, each from its own seed."""
    pipeline = stock.DiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    for at in range(0, len(scenes), batch):
        rows = range(at, min(at + batch, len(scenes)))
        images = pipeline(
            [scenes[row].captions()[0] for row in rows],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed * 1_000_000 + row) for row in rows],
        ).images
        yield from (np.asarray(image) for image in images)


def summary(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, dict[str, float]]:
    """Percent right by kind and attribute, and how many scenes stand behind it."""
    table: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        rows = [v for s, v in zip(scenes, verdicts, strict=True) if s.kind == kind]
        columns = {"all": [row.all for row in rows]}
        columns |= {name: [asdict(row)[name] for row in rows] for name in asdict(rows[0])}
        table[kind] = {"scenes": len(rows)}
        table[kind] |= {n: round(100 * sum(c) / len(c), 1) for n, c in columns.items()}
    return table


def contact_sheet(pictures: list[Pixels], right: list[bool]) -> Image.Image:
    """All pictures in rows of 20, the wrong ones framed in magenta."""
    cell, columns = SIDE + 8, 20
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (cell * columns, cell * rows), "white")
    for index, (picture, good) in enumerate(zip(pictures, right, strict=True)):
        x, y = cell * (index % columns), cell * (index // columns)
        if not good:
            sheet.paste((255, 0, 255), (x, y, x + cell, y + cell))
        sheet.paste(Image.fromarray(picture), (x + 4, y + 4))
    return sheet


def self_test() -> dict[str, float]:
    """Percent of all true drawings passed, and of drawings of other scenes turned down."""
    scenes = list(every_scene())
    others = random.Random(0).sample(scenes, len(scenes))
    different = [(s, o) for s, o in zip(scenes, others, strict=True) if s != o]
    passed = sum(judge(draw(scene), scene).all for scene in scenes)
    refused = sum(not judge(draw(other), scene).all for scene, other in different)
    return {
        "scenes": len(scenes),
        "true drawings passed": round(100 * passed / len(scenes), 2),
        "other drawings refused": round(100 * refused / len(different), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo model on held-out scenes.")
    parser.add_argument("--model", type=Path, default=Path("configs/demo/shapes"))
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sheet", type=Path, help="also write the pictures as one contact sheet")
    parser.add_argument("--self-test", action="store_true", help="check the checker instead")
    args = parser.parse_args()
    if args.self_test:
        report = self_test()
        print(json.dumps(report, indent=2))
        raise SystemExit(report["true drawings passed"] < 99)

    scenes = choose(args.scenes, args.seed)
    pictures = list(render(args.model, scenes, args.seed, args.steps, args.guidance, args.batch))
    verdicts = [judge(p, s) for p, s in zip(pictures, scenes, strict=True)]
    print(json.dumps(summary(scenes, verdicts), indent=2))
    if args.sheet:
        contact_sheet(pictures, [verdict.all for verdict in verdicts]).save(args.sheet)


if __name__ == "__main__":
    main()
