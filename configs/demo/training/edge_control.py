"""Train the edge ControlNet: white outlines on black say where objects are and how large.

    python -m configs.demo.training.edge_control --out out/demo-model/shapes-edges

It learns on objects at any place and of any size, with captions that say neither.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.demo.training.autoencoder import encode_drawings
from configs.demo.training.denoiser import EMPTY, noised
from configs.demo.training.drawing import coverage, paint
from configs.demo.training.judge import eroded
from configs.demo.training.parts import stock
from configs.demo.training.scenes import SIDE, Item, One, Scene, every_scene, held_out
from configs.demo.training.variants import Options, load, prepare, tokens_of, train

DRAWINGS = 4000
SINGLE = 0.6  # share of drawings with one object


@dataclass(frozen=True)
class Loose:
    """A drawing that its caption does not settle."""

    caption: str
    background: str
    items: tuple[Item, ...]

    @property
    def drawing(self) -> NDArray[np.uint8]:
        return paint(self.background, self.items)

    @property
    def edges(self) -> NDArray[np.bool_]:
        """One pixel wide, inside the objects: (SIDE, SIDE)."""
        masks = [coverage(i.shape, i.x, i.y, i.radius) > 0.5 for i in self.items]
        return reduce(np.logical_or, [mask & ~eroded(mask) for mask in masks])


def loosen(scene: Scene, lots: random.Random) -> Loose:
    """A single object goes anywhere in any size; several move and change a little."""
    if isinstance(scene, One):
        scene = replace(scene, size="medium", position="centre")  # what a bare caption means
        radius = lots.uniform(8, 20)
        x, y = (lots.uniform(radius * 1.1, SIDE - radius * 1.1) for _ in "xy")
        items = tuple(replace(item, x=x, y=y, radius=radius) for item in scene.items())
    else:
        items = tuple(
            replace(
                item,
                x=item.x + lots.uniform(-3, 3),
                y=item.y + lots.uniform(-3, 3),
                radius=lots.uniform(8, 13),
            )
            for item in scene.items()
        )
    return Loose(scene.captions()[0], scene.background, items)


def choose(count: int, lots: random.Random, held: bool) -> list[Loose]:
    """Drawings for training, or for checking with captions that were never trained on."""
    plain = {"size": "medium", "position": "centre"}
    kept = [
        scene
        for scene in every_scene()
        if held_out(replace(scene, **plain) if isinstance(scene, One) else scene) == held
    ]
    single = [scene for scene in kept if isinstance(scene, One)]
    several = [scene for scene in kept if not isinstance(scene, One)]
    return [
        loosen(lots.choice(single if lots.random() < SINGLE else several), lots)
        for _ in range(count)
    ]


def control_image(edges: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """White on black: (SIDE, SIDE, 3)."""
    return np.repeat(edges[..., None], 3, axis=-1).astype(np.uint8) * 255


def new_controlnet(unet: Any) -> Any:
    """The UNet's encoder and a small stem for edges, 1.3M parameters."""
    return stock.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32))


def train_controlnet(options: Options) -> None:
    """Mean squared error on the velocity; only the ControlNet learns."""
    pipeline = load(options.model)
    unet = pipeline.unet.to(memory_format=torch.channels_last)
    loose = choose(DRAWINGS, random.Random(options.seed), held=False)
    latents = encode_drawings(
        pipeline.vae, (one.drawing for one in loose), pipeline.vae.config.scaling_factor
    )
    edges = torch.from_numpy(np.stack([one.edges for one in loose]))
    ids = tokens_of(pipeline, [one.caption for one in loose])
    empty = tokens_of(pipeline, [""])
    generator = torch.Generator().manual_seed(options.seed)
    controlnet = new_controlnet(unet).to(memory_format=torch.channels_last)

    def loss_of() -> Tensor:
        rows = torch.randint(len(loose), (options.batch,), generator=generator)
        dropped = torch.rand(options.batch, 1, generator=generator) < EMPTY
        with torch.no_grad():
            states = pipeline.text_encoder(torch.where(dropped, empty, ids[rows]))[0]
        noisy, times, velocity = noised(latents[rows], pipeline.scheduler.alphas_cumprod, generator)
        image = edges[rows, None].expand(-1, 3, -1, -1).float()
        down, middle = controlnet(noisy, times, states, image, return_dict=False)
        predicted = unet(
            noisy,
            times,
            states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return functional.mse_loss(predicted, velocity)

    def save(average: Any) -> None:
        stored = new_controlnet(unet)
        stored.load_state_dict(average.state_dict())
        stored.to(torch.float16).save_pretrained(options.out)

    train(controlnet, loss_of, save, options)


if __name__ == "__main__":
    train_controlnet(prepare("Train the edge ControlNet.", steps=1500, batch=12, rate=1.5e-3))
