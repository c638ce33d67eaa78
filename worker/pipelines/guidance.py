"""A guidance of its own for each request of a call, where a pipeline thinks of one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Guidance:
    """Stands for a number in `uncond + guidance * (cond - uncond)`, another one for each sample.

    Each sample's bytes are those of a call with its number alone: torch as well multiplies a tensor
    by a number in float32, and rounds once.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self._scales = torch.tensor(scales, dtype=torch.float32)

    def __gt__(self, other: float) -> bool:
        """Whether all are above. What asks is the pipeline, before it renders without a prompt."""
        return bool((self._scales > other).all())

    def __mul__(self, samples: torch.Tensor) -> torch.Tensor:
        """Of shape (requests, …)."""
        self._scales = self._scales.to(samples.device)  # once a call
        scales = self._scales.reshape(-1, *[1] * (samples.dim() - 1))
        return (scales * samples).to(samples.dtype)
