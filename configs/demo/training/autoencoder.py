"""Training of the VAE: drawings to latents and back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.demo.training.drawing import draw
from configs.demo.training.parts import new_vae
from configs.demo.training.scenes import SIDE, Scene
from configs.demo.training.schedule import Options, Schedule

CROPPED = 0.83  # share of the steps on crops of half the side, which cost a quarter
KL_WEIGHT = 2e-3  # less leaves latents that the UNet learns badly


def train_vae(scenes: list[Scene], options: Options) -> Any:
    """A VAE for drawings whose scaling factor brings latents to unit variance.

    The loss is L1 + half the squared error + a weak KL term. The finished VAE is kept in
    `options.out` and read from there by a later run.
    """
    vae = new_vae().to(memory_format=torch.channels_last)
    kept = options.out / "vae.pt"
    if kept.exists():
        state = torch.load(kept)
        vae.load_state_dict(state["vae"])
        vae.register_to_config(scaling_factor=state["scaling_factor"])
        return vae
    lots = random.Random(options.seed)
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    schedule = Schedule(options.vae_rate, options.vae_steps)
    for step in range(options.vae_steps):
        images = pictures(lots.choices(scenes, k=options.vae_batch))
        if step < options.vae_steps * CROPPED:
            x, y = lots.randint(0, SIDE // 2), lots.randint(0, SIDE // 2)
            images = images[:, :, y : y + SIDE // 2, x : x + SIDE // 2]
        images = images.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
        l1 = functional.l1_loss(rebuilt, images)
        square = functional.mse_loss(rebuilt, images)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()

        schedule.apply(step, optimizer)
        optimizer.zero_grad(set_to_none=True)
        (l1 + 0.5 * square + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == options.vae_steps:
            figures = f"l1 {l1:.4f} mse {square:.5f} kl {kl:.3f}"
            print(f"vae {step:5d} {schedule.spent():5.1f} min {figures}", flush=True)
    sample = encode(vae, lots.sample(scenes, 1000), scale=1.0)
    vae.register_to_config(scaling_factor=round(1 / sample.std().item(), 4))
    torch.save({"vae": vae.state_dict(), "scaling_factor": vae.config.scaling_factor}, kept)
    return vae


def pictures(scenes: list[Scene]) -> Tensor:
    """Drawings of the scenes: (n, 3, 64, 64) in -1..1."""
    return tensor([draw(scene) for scene in scenes])


def tensor(drawings: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures as a VAE takes them: (n, 3, 64, 64) in -1..1."""
    pixels = torch.from_numpy(np.stack(drawings))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: Any, scenes: list[Scene], scale: float) -> Tensor:
    """Latents of the scenes, posterior means times `scale`: (n, 4, 16, 16)."""
    return encode_drawings(vae, (draw(scene) for scene in scenes), scale)


@torch.no_grad()
def encode_drawings(vae: Any, drawings: Iterator[NDArray[np.uint8]], scale: float) -> Tensor:
    """As encode, of pictures: (SIDE, SIDE, 3) each."""
    chunks = iter(lambda: list(islice(drawings, 64)), [])
    return torch.cat([vae.encode(tensor(c)).latent_dist.mean * scale for c in chunks])
