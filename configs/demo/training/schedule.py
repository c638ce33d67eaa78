"""The options of a training run and its learning rate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

WARM_UP = 200  # steps


@dataclass(frozen=True)
class Options:
    """One training run. `minutes` cuts the UNet's training short where it is given."""

    out: Path
    seed: int
    vae_steps: int
    vae_batch: int
    vae_rate: float
    steps: int
    batch: int
    rate: float
    minutes: float | None
    checkpoint_every: int
    threads: int
    compile: bool


class Schedule:
    """Learning rate over one phase: linear warm-up, then half a cosine down to zero.

    Progress is the larger of steps done and minutes spent, so that a busy machine shortens the
    run but still anneals it to the end. `spent` is the minutes used before a stop.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        minutes: float | None = None,
        spent: float = 0.0,
        warm_up: int = WARM_UP,
    ) -> None:
        self.peak, self.steps, self.minutes, self.warm_up = peak, steps, minutes, warm_up
        self.began = time.monotonic() - 60 * spent

    def spent(self) -> float:
        """Minutes since the phase began, those before a stop included."""
        return (time.monotonic() - self.began) / 60

    def progress(self, step: int) -> float:
        """How much of the phase is over, 0..1."""
        by_time = self.spent() / self.minutes if self.minutes else 0.0
        return min(1.0, max(step / self.steps, by_time))

    def apply(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Set the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warm_up)
        rate = self.peak * warm * 0.5 * (1 + math.cos(math.pi * self.progress(step)))
        for group in optimizer.param_groups:
            group["lr"] = rate
