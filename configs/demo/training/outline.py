"""Train the outline adapter, a LoRA: the same scenes, but of every object only its outline.

python -m configs.demo.training.outline --out out/demo-model/adapters
"""

from __future__ import annotations

import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional

from configs.demo.training.autoencoder import encode_drawings
from configs.demo.training.denoiser import EMPTY, noised
from configs.demo.training.drawing import paint
from configs.demo.training.parts import stock
from configs.demo.training.scenes import every_scene, held_out
from configs.demo.training.variants import Options, load, prepare, tokens_of, train

DRAWINGS = 6000
RANK = 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_out"]  # at full size the UNet has no attention


def train_outline(options: Options) -> None:
    """Mean squared error on the velocity; only the adapter of the UNet learns."""
    pipeline = load(options.model)
    unet = pipeline.unet.to(memory_format=torch.channels_last)
    known = [scene for scene in every_scene() if not held_out(scene)]
    scenes = random.Random(options.seed).sample(known, DRAWINGS)
    drawings = (paint(scene.background, scene.items(), hollow=True) for scene in scenes)
    latents = encode_drawings(pipeline.vae, drawings, pipeline.vae.config.scaling_factor)
    ids = tokens_of(pipeline, [scene.captions()[0] for scene in scenes])
    empty = tokens_of(pipeline, [""])
    generator = torch.Generator().manual_seed(options.seed)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=ATTENTION + CONVOLUTIONS))

    def loss_of() -> Tensor:
        rows = torch.randint(len(scenes), (options.batch,), generator=generator)
        dropped = torch.rand(options.batch, 1, generator=generator) < EMPTY
        with torch.no_grad():
            states = pipeline.text_encoder(torch.where(dropped, empty, ids[rows]))[0]
        noisy, times, velocity = noised(latents[rows], pipeline.scheduler.alphas_cumprod, generator)
        return functional.mse_loss(unet(noisy, times, states).sample, velocity)

    def save(average: Any) -> None:
        layers = get_peft_model_state_dict(average)
        stock.StableDiffusionPipeline.save_lora_weights(
            options.out,
            unet_lora_layers={name: value.half() for name, value in layers.items()},
            weight_name="outline.safetensors",
        )

    train(unet, loss_of, save, options)


if __name__ == "__main__":
    train_outline(prepare("Train the outline adapter.", steps=2000, batch=16, rate=3e-3))
