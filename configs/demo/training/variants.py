"""What the variants of the demo model share: its folder as the start, and one training loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from configs.demo.training.parts import CONTEXT, stock
from configs.demo.training.schedule import Schedule

AVERAGE = 0.985  # decay of the weights' moving average, the weights that are kept
WARM_UP = 40  # steps


@dataclass(frozen=True)
class Options:
    """One training run, from the pipeline folder `model` to `out`. `minutes` cuts it short."""

    model: Path
    out: Path
    seed: int
    steps: int
    batch: int
    rate: float
    minutes: float | None
    checkpoint_every: int
    threads: int


def prepare(about: str, steps: int, batch: int, rate: float) -> Options:
    """The options of the command line, with torch set up as they say."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", type=Path, default=Path("configs/demo/shapes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--minutes", type=float, help="shorten the training to this")
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    options = Options(**vars(parser.parse_args()))
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    return options


def load(model: Path) -> Any:
    """The demo pipeline in fp32, its weights frozen."""
    pipeline = stock.StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32)
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    return pipeline


def tokens_of(pipeline: Any, texts: list[str]) -> Tensor:
    """Token ids: (n, 24)."""
    read = pipeline.tokenizer(
        texts, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    ids: Tensor = read.input_ids
    return ids


def train(
    model: torch.nn.Module,
    loss_of: Callable[[], Tensor],
    save: Callable[[Any], None],
    options: Options,
) -> None:
    """AdamW on the trainable weights of `model`, which `loss_of` uses on a batch of its own.

    `save` gets a copy of the model with averaged weights, every `checkpoint_every` steps and at
    the end, so that whatever it has written is usable at any time.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    decay = get_ema_multi_avg_fn(AVERAGE)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=decay)
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = Schedule(options.rate, options.steps, options.minutes, warm_up=WARM_UP)
    recent: list[float] = []
    for step in range(options.steps):
        schedule.apply(step, optimizer)
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        average.update_parameters(model)

        recent.append(loss.item())
        finished = step + 1 == options.steps or schedule.progress(step + 1) == 1
        if (step + 1) % 50 == 0 or finished:
            mean = sum(recent) / len(recent)
            print(f"{step + 1:5d} {schedule.spent():5.1f} min v {mean:.4f}", flush=True)
            recent.clear()
        if (step + 1) % options.checkpoint_every == 0 or finished:
            save(average.module)
        if finished:
            break
