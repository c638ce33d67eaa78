"""torch.compile: what is compiled, how many graphs there may be, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# The blocks that repeat, of denoisers whose class in diffusers 0.42 does not name them.
_BLOCKS = {
    "SD3Transformer2DModel": ["JointTransformerBlock"],
    "SanaTransformer2DModel": ["SanaTransformerBlock"],
}
# Of one denoiser or block: each size, number of slots and set of ControlNets needs one, once bare
# and once with adapters. Whoever comes after the last that is allowed fails; torch's limit is 8.
GRAPHS = 256


def compile_denoiser(denoiser: Any, device: str, backend: str = "inductor") -> None:
    """Have a denoiser compiled when it is first called with tensors of some shapes.

    A transformer by the blocks that repeat, as each is compiled once. Of a UNet that leaves out
    what takes its time, the convolutions: on a GPU it is compiled whole, in channels-last memory.
    On the CPU that would take four times as long, for next to nothing.

    Each shape has a graph of its own. Else torch would make the second one's serve all shapes, and
    which graph renders a request, so which bytes it has, would go by what was rendered before.

    backend: torch.compile's; others than its usual one are for tests.

    Raises:
        ValueError: nobody knows which of its blocks repeat.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = 16 * GRAPHS
    name = type(denoiser).__name__
    if device == "cuda" and "UNet" in name:
        denoiser.to(memory_format=torch.channels_last)
        denoiser.compile(fullgraph=True, dynamic=False, backend=backend)
        return
    if name in _BLOCKS:
        denoiser._repeated_blocks = _BLOCKS[name]
    if not getattr(denoiser, "_repeated_blocks", None):
        raise ValueError(f"diffusers does not know which blocks of {name} repeat: leave it out")
    denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)


@dataclass
class CompileClock:
    """The seconds for which torch has compiled, but for those while it is paused."""

    seconds: float = 0.0
    paused: bool = False
    _since: float | None = None

    def start(self, _: object) -> None:
        """Compiling begins."""
        self._since = None if self.paused else time.monotonic()

    def stop(self, _: object) -> None:
        """It has ended."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None


@contextmanager
def compile_clock() -> Iterator[CompileClock]:
    """A clock that runs while torch compiles within the block."""
    clock, torch_says = CompileClock(), torch._dynamo.callback.callback_handler
    torch_says.register_start_callback(clock.start)
    torch_says.register_end_callback(clock.stop)
    try:
        yield clock
    finally:
        torch_says.remove_start_callback(clock.start)
        torch_says.remove_end_callback(clock.stop)
