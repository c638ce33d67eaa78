"""Measure the demo model's variants on pictures that they were never trained on.

python -m configs.demo.training.check_variants edges --variant configs/demo/shapes-edges
python -m configs.demo.training.check_variants edits --variant configs/demo/shapes-edits
python -m configs.demo.training.check_variants outline --variant configs/demo/adapters
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.demo.training import check, edge_control, edits
from configs.demo.training.check import contact_sheet
from configs.demo.training.drawing import draw, paint
from configs.demo.training.judge import Mask, Pixels, judge
from configs.demo.training.parts import stock
from configs.demo.training.scenes import PALETTE, One, every_scene, held_out

WIDTH = 16  # pictures a call


@dataclass(frozen=True)
class Options:
    """What is measured: `variant` is its folder, `model` that of the base."""

    kind: str
    model: Path
    variant: Path
    pictures: int
    seed: int
    steps: int
    guidance: float
    image_guidance: float
    sheet: Path | None


Result = tuple[dict[str, float], list[Pixels], list[bool]]  # figures, pictures, which are right


def check_edges(options: Options) -> Result:
    """Mean overlap of the objects with those whose edges were given, with and without them."""
    wanted = edge_control.choose(options.pictures, random.Random(options.seed), held=True)
    prompts = [one.caption for one in wanted]
    base = stock.StableDiffusionPipeline.from_pretrained(options.model)
    plain = [
        overlap(picture, one.drawing)
        for picture, one in zip(render(base, options, prompts), wanted, strict=True)
    ]
    guided = stock.StableDiffusionControlNetPipeline.from_pipe(
        base, controlnet=stock.ControlNetModel.from_pretrained(options.variant)
    )
    images = [Image.fromarray(edge_control.control_image(one.edges)) for one in wanted]
    pictures = list(render(guided, options, prompts, images))
    found = [overlap(p, one.drawing) for p, one in zip(pictures, wanted, strict=True)]
    single = [iou for iou, one in zip(found, wanted, strict=True) if len(one.items) == 1]
    figures = {
        "mask IoU": mean(found),
        "of single objects": mean(single),
        "without edges": mean(plain),
    }
    return figures, pictures, [iou >= 0.7 for iou in found]


def check_edits(options: Options) -> Result:
    """Percent of edits after which everything is right: what was to change and all else."""
    lots = random.Random(options.seed)
    scenes = [s for s in every_scene() if isinstance(s, One)]
    chosen: list[edits.Edit] = []
    while len(chosen) < options.pictures:
        edit = edits.choose(lots.choice(scenes), lots)
        if held_out(edit.after):
            chosen.append(edit)
    pipeline = stock.StableDiffusionInstructPix2PixPipeline.from_pretrained(options.variant)
    images = [Image.fromarray(draw(edit.before)) for edit in chosen]
    words = [edit.words for edit in chosen]
    guidance = {"image_guidance_scale": options.image_guidance}
    pictures = list(render(pipeline, options, words, images, **guidance))
    verdicts = [judge(p, edit.after) for p, edit in zip(pictures, chosen, strict=True)]
    right = [verdict.all for verdict in verdicts]
    figures = {"all": 100 * mean(right)}
    for what in edits.SHARES:
        rows = [
            ok
            for ok, edit in zip(right, chosen, strict=True)
            if getattr(edit.before, what) != getattr(edit.after, what)
        ]
        figures[what] = 100 * mean(rows)
    return figures, pictures, right


def check_outline(options: Options) -> Result:
    """Percent of pictures that overlap the outlines more than the filled objects."""
    scenes = check.choose(options.pictures, options.seed)
    prompts = [scene.captions()[0] for scene in scenes]
    pipeline = stock.StableDiffusionPipeline.from_pretrained(options.model)
    pipeline.load_lora_weights(options.variant, weight_name="outline.safetensors")
    pictures = list(render(pipeline, options, prompts))
    hollow = [
        overlap(p, paint(s.background, s.items(), hollow=True))
        for p, s in zip(pictures, scenes, strict=True)
    ]
    filled = [overlap(p, draw(s)) for p, s in zip(pictures, scenes, strict=True)]
    right = [h > f for h, f in zip(hollow, filled, strict=True)]
    return {"outlined": 100 * mean(right), "mask IoU": mean(hollow)}, pictures, right


def render(
    pipeline: Any,
    options: Options,
    prompts: list[str],
    images: list[Image.Image] | None = None,
    **arguments: float,
) -> Iterator[Pixels]:
    """Pictures of the prompts, each from its own seed, with its image where there are any."""
    pipeline.set_progress_bar_config(disable=True)
    for at in range(0, len(prompts), WIDTH):
        rows = range(at, min(at + WIDTH, len(prompts)))
        found = pipeline(
            prompt=[prompts[row] for row in rows],
            **({"image": [images[row] for row in rows]} if images else {}),
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[
                torch.Generator().manual_seed(options.seed * 1_000_000 + row) for row in rows
            ],
            **arguments,
        ).images
        yield from (np.asarray(image) for image in found)


def overlap(picture: Pixels, truth: Pixels) -> float:
    """IoU of the objects in both, in 0..1: all that is nearer to a colour other than the ground's.

    The ground is the colour of the true picture's border.
    """
    here, there = (objects(one, truth[0, 0]) for one in (picture, truth))
    return float((here & there).sum() / max(1, (here | there).sum()))


def objects(picture: Pixels, ground: NDArray[np.uint8]) -> Mask:
    """Pixels further from the ground than half way to the nearest other colour of the palette."""
    away = [np.linalg.norm(np.subtract(rgb, ground.astype(float))) for rgb in PALETTE.values()]
    least = min(distance for distance in away if distance > 0) / 2
    mask: Mask = np.linalg.norm(picture.astype(float) - ground, axis=-1) > least
    return mask


def mean(values: list[Any]) -> float:
    """To three digits; NaN of nothing."""
    return round(float(np.mean(values)), 3) if values else float("nan")


CHECKS: dict[str, Callable[[Options], Result]] = {
    "edges": check_edges,
    "edits": check_edits,
    "outline": check_outline,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a variant of the demo model.")
    parser.add_argument("kind", choices=CHECKS)
    parser.add_argument("--model", type=Path, default=Path("configs/demo/shapes"))
    parser.add_argument("--variant", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--image-guidance", type=float, default=1.5, help="of edits")
    parser.add_argument("--sheet", type=Path, help="also write the pictures as one contact sheet")
    options = Options(**vars(parser.parse_args()))
    figures, pictures, right = CHECKS[options.kind](options)
    print(json.dumps(figures, indent=2))
    if options.sheet:
        contact_sheet(pictures, right).save(options.sheet)


if __name__ == "__main__":
    main()
