"""What a pipeline does without once memory runs out in its decoder, before it renders fewer."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from jobs.models.options import Options
from jobs.requests import BatchKey

log = logging.getLogger(__name__)

# In the order in which they are tried: the first changes a rounding, the second also seams.
_KINDS = {"vae_slicing": "slicing", "vae_tiling": "tiling"}


@dataclass
class Savings:
    """Slicing and tiling of a VAE, by batch key: what one kind of batch needs costs no other.

    What options say stays as they say. vae: None where the pipeline has none that can save.
    """

    vae: Any
    options: Options
    _kept: dict[BatchKey, tuple[str, ...]] = field(default_factory=dict)
    _short: BatchKey | None = None

    def apply(self, key: BatchKey) -> None:
        """Set the VAE up for a batch of this key."""
        for name, kind in self._possible():
            state = "enable" if name in self._kept.get(key, ()) else "disable"
            getattr(self.vae, f"{state}_{kind}")()

    def note(self, key: BatchKey, error: BaseException) -> None:
        """Remember whether it was the VAE that ran out of memory."""
        self._short = key if self.vae is not None and _went_through(self.vae, error) else None

    def more(self, key: BatchKey, slots: int) -> bool:
        """Save more at the next batch of this key, for good; False if that cannot help."""
        if self._short != key:
            return False
        self._short = None
        kept = self._kept.get(key, ())
        for name, _ in self._possible():
            if name not in kept and (slots > 1 or name != "vae_slicing"):
                log.warning("Out of memory in the VAE: going on with %s", name)
                self._kept[key] = (*kept, name)
                return True
        return False

    def names(self, key: BatchKey) -> str:
        """What is saved for a key, as records tell it: "vae_slicing, vae_tiling"."""
        return ", ".join(self._kept.get(key, ()))

    def _possible(self) -> list[tuple[str, str]]:
        return [
            (name, kind)
            for name, kind in _KINDS.items()
            if not getattr(self.options, name) and hasattr(self.vae, f"use_{kind}")
        ]


def _went_through(module: object, error: BaseException) -> bool:
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_locals.get("self") is module:
            return True
        trace = trace.tb_next
    return False
