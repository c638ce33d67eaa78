"""Train the editing variant, an InstructPix2Pix model: a picture and an instruction in, the
picture changed out.

    python -m configs.demo.training.edits --out out/demo-model/shapes-edits

It edits single objects: their colour, shape and size, and the background.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from configs.demo.training.autoencoder import encode_drawings
from configs.demo.training.denoiser import noised
from configs.demo.training.drawing import draw
from configs.demo.training.parts import stock
from configs.demo.training.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    One,
    every_scene,
    held_out,
    indefinite,
)
from configs.demo.training.variants import Options, load, prepare, tokens_of, train

SHARES = {"colour": 0.3, "shape": 0.4, "background": 0.15, "size": 0.15}
WORDLESS = 0.08  # share of samples with the picture alone, for guidance
BLANK = 0.05  # share of samples with neither


@dataclass(frozen=True)
class Edit:
    """An instruction, and the picture before and after it."""

    before: One
    after: One
    words: str


def choose(before: One, lots: random.Random) -> Edit:
    """A random edit of a scene that changes it."""
    (what,) = lots.choices([*SHARES], [*SHARES.values()])
    if what == "colour":
        colour = lots.choice([c for c in COLOURS if c not in (before.colour, before.background)])
        return Edit(before, replace(before, colour=colour), f"make it {colour}")
    if what == "shape":
        shape = lots.choice([s for s in SHAPES if s != before.shape])
        words = f"turn the {before.shape} into {indefinite(shape)}"
        return Edit(before, replace(before, shape=shape), words)
    if what == "background":
        grounds = [b for b in BACKGROUNDS if b not in (before.colour, before.background)]
        background = lots.choice(grounds)
        words = f"make the background {background}"
        return Edit(before, replace(before, background=background), words)
    size = lots.choice([s for s in ("small", "large") if s != before.size])
    return Edit(before, replace(before, size=size), f"make it {size}")


def new_unet(base: Any) -> Any:
    """The base UNet with four more input channels, which at first do nothing."""
    unet = stock.UNet2DConditionModel.from_config(base.config, in_channels=8)
    weights = base.state_dict()
    old = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([old, torch.zeros_like(old)], dim=1)
    unet.load_state_dict(weights)
    return unet


def train_edits(options: Options) -> None:
    """Mean squared error on the velocity; UNet and text encoder learn on."""
    pipeline = load(options.model)
    lots = random.Random(options.seed)
    scenes = [s for s in every_scene() if isinstance(s, One) and not held_out(s)]
    drawings = (draw(scene) for scene in scenes)
    rows_of = {scene: row for row, scene in enumerate(scenes)}
    latents = encode_drawings(pipeline.vae, drawings, scale=1.0)  # as the pipeline gives inputs
    generator = torch.Generator().manual_seed(options.seed)
    models = torch.nn.ModuleDict(
        {
            "unet": new_unet(pipeline.unet).to(memory_format=torch.channels_last),
            "text_encoder": pipeline.text_encoder,
        }
    ).requires_grad_(True)

    def loss_of() -> Tensor:
        edits: list[Edit] = []
        while len(edits) < options.batch:
            edit = choose(lots.choice(scenes), lots)
            if edit.after in rows_of:
                edits.append(edit)
        before = latents[[rows_of[edit.before] for edit in edits]]
        after = latents[[rows_of[edit.after] for edit in edits]]
        dropped = [lots.random() for _ in edits]
        words = [
            "" if lot < BLANK + WORDLESS else edit.words
            for lot, edit in zip(dropped, edits, strict=True)
        ]
        shown = (torch.tensor(dropped) >= BLANK).view(-1, 1, 1, 1)
        noisy, times, velocity = noised(
            after * pipeline.vae.config.scaling_factor,
            pipeline.scheduler.alphas_cumprod,
            generator,
        )
        seen = torch.cat([noisy, before * shown], dim=1)
        states = models["text_encoder"](tokens_of(pipeline, words))[0]
        predicted = models["unet"](seen, times, states).sample
        return functional.mse_loss(predicted, velocity)

    def save(average: Any) -> None:
        unet = new_unet(pipeline.unet)
        unet.load_state_dict(average["unet"].state_dict())
        stock.StableDiffusionInstructPix2PixPipeline(
            vae=stock.AutoencoderKL.from_pretrained(options.model, subfolder="vae").half(),
            unet=unet.half(),
            text_encoder=average["text_encoder"],
            tokenizer=pipeline.tokenizer,
            scheduler=pipeline.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(options.out)

    train(models, loss_of, save, options)


if __name__ == "__main__":
    train_edits(prepare("Train the editing variant.", steps=4000, batch=24, rate=1e-3))
