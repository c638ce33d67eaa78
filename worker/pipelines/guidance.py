"""A guidance of its own for each request of a call, where a pipeline thinks of one number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


class Embedded:
    """Tells denoisers a guidance a sample, where the pipeline tells all of a call the same number.

    Each sample's bytes are those of a call with its number alone, as what denoisers make of it they
    make of each sample by itself.

    denoisers: modules with an argument `guidance`, float32 of shape (requests,).
    """

    def __init__(self, denoisers: Iterable[torch.nn.Module]) -> None:
        self._scales: torch.Tensor | None = None
        for one in denoisers:
            one.register_forward_pre_hook(self._tell, with_kwargs=True)

    @contextmanager
    def each(self, scales: Sequence[float]) -> Iterator[None]:
        """Within the block: these, or if there are none what the pipeline says.

        A block may lie within another's, which then waits.
        """
        waiting = self._scales
        self._scales = torch.tensor(scales, dtype=torch.float32) if scales else None
        try:
            yield
        finally:
            self._scales = waiting

    def _tell(self, _: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        told = named.get("guidance")  # None where the model was trained without
        if self._scales is None or told is None:
            return None
        self._scales = self._scales.to(told.device)  # once a call
        return args, named | {"guidance": self._scales}
