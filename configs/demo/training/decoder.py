"""Train the VAE's decoder on, with outlines among the drawings: strokes as thin as theirs it has
never seen, and paints them in stains.

    python -m configs.demo.training.decoder --out out/demo-model/shapes/vae

The encoder stays as it is, and so do the latents that the UNet and its variants have learned.
"""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from configs.demo.training.autoencoder import tensor
from configs.demo.training.drawing import paint
from configs.demo.training.parts import new_vae
from configs.demo.training.scenes import SIDE, every_scene, held_out
from configs.demo.training.variants import Options, load, prepare, train

HOLLOW = 0.6  # share of the drawings that are outlines
CROPPED = 0.8  # share of the steps on crops of half the side, which cost a quarter
LATENT = 4  # pixels of a drawing to one of its latents


def train_decoder(options: Options) -> None:
    """L1 and half the squared error; only the decoder learns."""
    vae = load(options.model).vae.to(memory_format=torch.channels_last)
    known = [scene for scene in every_scene() if not held_out(scene)]
    lots = random.Random(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    decoder = torch.nn.ModuleDict({"decoder": vae.decoder, "post": vae.post_quant_conv})
    decoder.requires_grad_(True)
    steps = count()

    def loss_of() -> Tensor:
        scenes = lots.choices(known, k=options.batch)
        drawings = [paint(s.background, s.items(), lots.random() < HOLLOW) for s in scenes]
        images = tensor(drawings).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample(generator)
        if next(steps) < options.steps * CROPPED:
            half = SIDE // LATENT // 2
            x, y = lots.randint(0, half), lots.randint(0, half)
            latents = latents[:, :, y : y + half, x : x + half]
            x, y = x * LATENT, y * LATENT
            images = images[:, :, y : y + SIDE // 2, x : x + SIDE // 2]
        rebuilt = vae.decode(latents.contiguous(memory_format=torch.channels_last)).sample
        return functional.l1_loss(rebuilt, images) + 0.5 * functional.mse_loss(rebuilt, images)

    def save(average: Any) -> None:
        stored = new_vae()
        weights = vae.state_dict()
        for name, part in (("decoder", "decoder"), ("post", "post_quant_conv")):
            for key, value in average[name].state_dict().items():
                weights[f"{part}.{key}"] = value
        stored.load_state_dict(weights)
        stored.register_to_config(scaling_factor=vae.config.scaling_factor)
        stored.to(torch.float16).save_pretrained(options.out)

    train(decoder, loss_of, save, options)


if __name__ == "__main__":
    train_decoder(prepare("Train the decoder on outlines.", steps=1750, batch=16, rate=1.5e-3))
