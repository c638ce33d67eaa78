"""Batches to images. One bad request never costs another."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import FatalError, ImagemillError
from jobs.records import Stack
from jobs.requests import BatchKey, Request

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """A loaded model. `stack` tells what it is; its batch_width is the width to render at."""

    stack: Stack

    def render(self, requests: list[Request]) -> NDArray[np.float32]:
        """Images of requests that share a batch key: (requests, height, width, 3), RGB in [0, 1].

        Raises:
            MemoryError: the device has too little memory for so many at once.
        """


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request's pixels, (height, width, 3) in [0, 1], or the code and message of its failure.

    width: images in its pipeline call, padding included; seconds: that call's share.
    """

    request: Request
    width: int
    seconds: float
    pixels: NDArray[np.float32] | None = None
    code: str = ""
    message: str = ""


def batches(requests: list[Request], width: int) -> Iterator[list[Request]]:
    """Runs of at most `width` requests with equal batch keys, in the given order."""
    for _, group in groupby(requests, key=lambda request: request.key):
        same = list(group)
        for start in range(0, len(same), width):
            yield same[start : start + width]


@dataclass
class BatchRenderer:
    """Renders batches at a fixed width, so that pixels do not depend on how full a batch is.

    Pads each batch by repeating its last request. Where memory is short the width is halved, and
    stays so for that batch key as long as the process lives; records tell the width.
    """

    renderer: Renderer
    _widths: dict[BatchKey, int] = field(default_factory=dict)

    @property
    def stack(self) -> Stack:
        """What renders."""
        return self.renderer.stack

    @property
    def width(self) -> int:
        """The most requests of one batch."""
        return self.stack.batch_width

    def check_weights(self, planned: str) -> None:
        """Refuse to render with other weights than a run was planned for.

        Raises:
            FatalError: the fingerprints differ.
        """
        stack = self.stack
        if stack.fingerprint != planned:
            raise FatalError(
                f"model {stack.repo}: the weights here have fingerprint {stack.fingerprint}, "
                f"the run was planned for {planned}",
                "Give this worker the same weights and models table, or submit the manifest anew.",
            )

    def render(self, batch: list[Request]) -> list[Rendered]:
        """What became of each request of a batch, in order."""
        width = self._widths.get(batch[0].key, self.width)
        if len(batch) > width:
            return [*self.render(batch[:width]), *self.render(batch[width:])]
        started = time.perf_counter()
        try:
            images = self.renderer.render(batch + batch[-1:] * (width - len(batch)))
        except ImagemillError:
            raise
        except MemoryError as error:
            if width > 1:
                log.warning("Out of memory at width %d: going on with %d", width, width // 2)
                self._widths[batch[0].key] = width // 2
                return self.render(batch)
            return [_failed(batch[0], width, started, "out_of_memory", error)]
        except Exception as error:
            if len(batch) > 1:  # at the same width: the others' pixels stay what they are
                half = len(batch) // 2
                return [*self.render(batch[:half]), *self.render(batch[half:])]
            log.exception("Request %s failed", batch[0].job_id)
            return [_failed(batch[0], width, started, "render_error", error)]
        share = (time.perf_counter() - started) / len(batch)
        return [
            Rendered(request, width, share, pixels)
            if np.isfinite(pixels).all()
            else Rendered(request, width, share, None, "non_finite", "the image has NaN pixels")
            for request, pixels in zip(batch, images, strict=False)
        ]


def _failed(request: Request, width: int, started: float, code: str, error: Exception) -> Rendered:
    message = f"{type(error).__name__}: {error}"[:500]
    return Rendered(request, width, time.perf_counter() - started, None, code, message)
