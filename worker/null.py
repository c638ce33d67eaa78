"""The null renderer: one flat colour a request, from its seed, without a device or torch."""

from __future__ import annotations

import time
from hashlib import blake2b

import numpy as np

from jobs.marks import mark_name
from jobs.models.fingerprints import Fingerprint
from jobs.models.table import Model
from jobs.output.records import Stack
from jobs.requests import BatchKey
from worker.inputs import Prepared
from worker.render import Image, Pause
from worker.versions import installed


class NullRenderer:
    """Measures everything around the rendering, as it costs nothing itself.

    The model's option `sleep` makes each batch last so many seconds, as a device would, in its
    steps: a processor that is late for one does not make the batch longer.
    """

    def __init__(self, model: Model, weights: Fingerprint) -> None:
        self.sleep = model.options.sleep
        self.stack = Stack(
            repo=weights.repo,
            revision=weights.revision,
            fingerprint=weights.digest,
            pipeline="NullRenderer",
            scheduler="none",
            dtype="uint8",  # of its pixels, whatever the row says
            device="cpu",
            device_name="none",
            batch_width=model.batch_width,
            threads=model.threads,
            versions=installed("pillow", "imagemill"),
            mark=mark_name(model.options.mark),
        )

    def render(self, batch: list[Prepared], pause: Pause) -> list[Image]:
        """Flat colours."""
        key = batch[0].request.key
        end = time.monotonic()
        for _ in range(key.steps if self.sleep else 0):
            end += self.sleep / key.steps
            time.sleep(max(0.0, end - time.monotonic()))
            asked = time.monotonic()
            if pause():
                end += time.monotonic() - asked
        colours = np.array([_colour(one.request.seed) for one in batch], np.uint8)
        shape = (len(batch), key.height, key.width, 3)
        return list(np.broadcast_to(colours[:, None, None, :], shape))

    def call_key(self, key: BatchKey) -> BatchKey:
        """All of it."""
        return key

    def slots(self, key: BatchKey) -> int:
        """Requests of one call."""
        return key.slots_within(self.stack.batch_width)

    def fits_inputs(self) -> bool:
        """As most models do."""
        return True

    def save_memory(self, _: BatchKey) -> bool:
        """It needs none."""
        return False

    def stack_for(self, _: BatchKey) -> Stack:
        """The same for all."""
        return self.stack

    def compile_seconds(self) -> float:
        """It never does."""
        return 0.0

    def tokens_cut(self, _: str) -> int:
        """It reads no prompts."""
        return 0


def _colour(seed: int) -> list[int]:
    return list(blake2b(seed.to_bytes(8, "little"), digest_size=3).digest())
