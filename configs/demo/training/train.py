"""Train the demo model from nothing: first the VAE, then the UNet with its text encoder.

    python -m configs.demo.training.train --out DIR

A run that was stopped and is started again with the same DIR keeps the finished VAE and goes on
from the UNet's last checkpoint. The pipeline folder is DIR/shapes, rewritten at every checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from configs.demo.training.autoencoder import train_vae
from configs.demo.training.denoiser import train_denoiser
from configs.demo.training.scenes import every_scene, held_out
from configs.demo.training.schedule import Options


def parse_options() -> Options:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and DIR/shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-steps", type=int, default=2400)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--vae-rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=12000, help="of the UNet")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, help="shorten the UNet's training to this")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return Options(**vars(parser.parse_args()))


def main() -> None:
    options = parse_options()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    scenes = [scene for scene in every_scene() if not held_out(scene)]
    vae = train_vae(scenes, options).requires_grad_(False)
    train_denoiser(scenes, vae, options)


if __name__ == "__main__":
    main()
