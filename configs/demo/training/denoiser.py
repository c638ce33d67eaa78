"""Training of the UNet and, together with it, of the text encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from configs.demo.training.autoencoder import encode
from configs.demo.training.parts import (
    CONTEXT,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    save_pipeline,
)
from configs.demo.training.scenes import KINDS, Kind, Scene, vocabulary
from configs.demo.training.schedule import Options, Schedule

MIXTURE: dict[Kind, float] = {"one": 0.35, "counted": 0.2, "paired": 0.45}  # shares of a batch
PHRASINGS = 4  # captions kept per scene
EMPTY = 0.1  # share of empty captions, for guidance
PURE_NOISE = 0.06  # share of samples at the last timestep, where every picture starts
AVERAGE = 0.999  # decay of the weights' moving average, the weights that are kept


class Batches:
    """Seeded batches of training samples, made from scenes encoded once."""

    def __init__(
        self, scenes: list[Scene], vae: Any, tokenizer: CLIPTokenizer, options: Options
    ) -> None:
        self.size = options.batch
        self.generator = torch.Generator().manual_seed(options.seed)
        self.latents = encode(vae, scenes, vae.config.scaling_factor)
        self.signal = new_scheduler().alphas_cumprod
        texts = [text for s in scenes for text in (s.captions() * PHRASINGS)[:PHRASINGS]]
        ids = tokenizer(
            [*texts, ""], padding="max_length", max_length=CONTEXT, return_tensors="pt"
        ).input_ids
        self.empty, self.ids = ids[-1], ids[:-1].view(len(scenes), PHRASINGS, CONTEXT)
        self.groups = [
            torch.tensor([i for i, s in enumerate(scenes) if s.kind == kind]) for kind in KINDS
        ]
        self.shares = torch.tensor([MIXTURE[kind] for kind in KINDS])

    def uniform(self) -> Tensor:
        return torch.rand(self.size, generator=self.generator)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents (n, 4, 16, 16), timesteps (n), token ids (n, 24) and the velocity."""
        kinds = torch.multinomial(self.shares, self.size, True, generator=self.generator)
        rows = torch.stack(
            [
                self.groups[kind][int(lot * len(self.groups[kind]))]
                for kind, lot in zip(kinds, self.uniform(), strict=True)
            ]
        )
        tokens = self.ids[rows, (PHRASINGS * self.uniform()).long()]
        tokens[self.uniform() < EMPTY] = self.empty
        noisy, times, velocity = noised(self.latents[rows], self.signal, self.generator)
        return noisy, times, tokens, velocity


def noised(clean: Tensor, signal: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Noisy latents (n, 4, 16, 16), timesteps (n) and the velocity, which is to be predicted.

    With signal share a at a timestep, x = sqrt(a) clean + sqrt(1 - a) noise and
    v = sqrt(a) noise - sqrt(1 - a) clean (Salimans & Ho 2022, arXiv:2202.00512).
    """
    lots = torch.rand(2, len(clean), generator=generator)
    # leaning towards noise, where the layout is decided
    times = (1000 * lots[0] ** 0.75).long()
    times[lots[1] < PURE_NOISE] = 999
    a = signal[times].view(-1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
    return noisy.contiguous(memory_format=torch.channels_last), times, velocity


def train_denoiser(scenes: list[Scene], vae: Any, options: Options) -> None:
    """Mean squared error on the velocity, AdamW, averaged weights.

    Every `checkpoint_every` steps the whole state goes to `options.out`, from where a later run
    continues, and the pipeline as it would be now to `options.out / "shapes"`.
    """
    tokenizer = new_tokenizer(vocabulary())
    unet = new_unet().to(memory_format=torch.channels_last)
    text_encoder = new_text_encoder(tokenizer)
    models = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    average = {name: value.clone() for name, value in models.state_dict().items()}
    optimizer = torch.optim.AdamW(
        models.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    batches = Batches(scenes, vae, tokenizer, options)
    kept, first, spent = options.out / "denoiser.pt", 0, 0.0
    if kept.exists():
        state: dict[str, Any] = torch.load(kept)
        models.load_state_dict(state["models"])
        optimizer.load_state_dict(state["optimizer"])
        batches.generator.set_state(state["generator"])
        average, first, spent = state["average"], state["step"], state["spent"]

    def loss_of(noisy: Tensor, times: Tensor, tokens: Tensor, velocity: Tensor) -> Tensor:
        states = text_encoder(tokens).last_hidden_state
        return functional.mse_loss(unet(noisy, times, states).sample, velocity)

    step_loss = torch.compile(loss_of) if options.compile else loss_of
    schedule = Schedule(options.rate, options.steps, options.minutes, spent)
    recent: list[float] = []
    for step in range(first, options.steps):
        schedule.apply(step, optimizer)
        loss = step_loss(*batches.draw())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(models.parameters(), 1.0)
        optimizer.step()
        decay = min(AVERAGE, (step + 1) / (step + 10))
        for name, value in models.state_dict().items():
            average[name].lerp_(value, 1 - decay)

        recent.append(loss.item())
        finished = step + 1 == options.steps or schedule.progress(step + 1) == 1
        if (step + 1) % 50 == 0 or finished:
            mean = sum(recent) / len(recent)
            print(f"unet {step + 1:5d} {schedule.spent():5.1f} min v {mean:.4f}", flush=True)
            recent.clear()
        if (step + 1) % options.checkpoint_every == 0 or finished:
            state = {"models": models.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"generator": batches.generator.get_state(), "average": average}
            torch.save(state | {"step": step + 1, "spent": schedule.spent()}, kept)
            export(average, vae, tokenizer, options)
        if finished:
            break


def export(
    average: dict[str, Tensor], vae: Any, tokenizer: CLIPTokenizer, options: Options
) -> None:
    """Write the pipeline folder from the averaged weights."""
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    models = torch.nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    models.load_state_dict(average)
    save_pipeline(options.out / "shapes", vae, unet, text_encoder, tokenizer)
