"""Batches to images. One bad request never costs another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import FatalError, ImagemillError, InvalidRequest
from jobs.output.records import Stack, Status
from jobs.requests import BatchKey, Request
from worker.inputs import Prepared

log = logging.getLogger(__name__)


class Renderer(Protocol):
    """A loaded model."""

    def render(self, batch: list[Prepared]) -> NDArray[np.float32]:
        """Images of requests that share a batch key: (requests, height, width, 3), RGB in [0, 1].

        Raises:
            MemoryError: the device has too little memory for so many at once.
            InvalidRequest: the model does not take what the requests ask for.
        """

    def width(self, key: BatchKey) -> int:
        """The number of requests that one call for this key has."""

    def stack_for(self, key: BatchKey) -> Stack:
        """What renders requests of this key."""

    def tokens_cut(self, prompt: str) -> int:
        """Tokens at a prompt's end that the model does not read."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request's pixels, (height, width, 3) in [0, 1], or the code and message of its failure.

    stack: what rendered it; its batch_width counts the padding. seconds: the call's share.
    """

    request: Request
    stack: Stack
    seconds: float
    pixels: NDArray[np.float32] | None = None
    status: Status = "done"
    code: str = ""
    message: str = ""
    seconds_load: float = 0.0
    tokens_cut: int = 0


def batches(requests: list[Request], width: Callable[[BatchKey], int]) -> Iterator[list[Request]]:
    """Runs of at most width(key) requests with equal batch keys, in the given order."""
    for key, group in groupby(requests, key=lambda request: request.key):
        same, most = list(group), width(key)
        for start in range(0, len(same), most):
            yield same[start : start + most]


@dataclass
class BatchRenderer:
    """Renders batches at a fixed width, so that pixels do not depend on how full a batch is.

    Pads each batch by repeating its last request. Where memory is short the width is halved, and
    stays so for that batch key as long as the process lives; records tell the width.

    make_room: frees what else lies in the device's memory; true if there was something.
    """

    renderer: Renderer
    make_room: Callable[[], bool] = lambda: False
    _widths: dict[BatchKey, int] = field(default_factory=dict)

    def width(self, key: BatchKey) -> int:
        """The most requests of one batch."""
        return self._widths.get(key) or self.renderer.width(key)

    def check_weights(self, key: BatchKey, planned: str) -> None:
        """Refuse to render with other weights than a run was planned for.

        Raises:
            FatalError: the fingerprints differ.
        """
        stack = self.renderer.stack_for(key)
        if stack.fingerprint != planned:
            raise FatalError(
                f"model {stack.repo}: the weights here have fingerprint {stack.fingerprint}, "
                f"the run was planned for {planned}",
                "Give this worker the same weights and models table, or submit the manifest anew.",
            )

    def render(self, batch: list[Prepared]) -> list[Rendered]:
        """What became of each request of a batch, in order."""
        good = [one for one in batch if one.problem is None]
        rendered = iter(self._render(good) if good else [])
        return [
            next(rendered)
            if one.problem is None
            else self.ended(one, "rejected", one.problem.code, str(one.problem))
            for one in batch
        ]

    def _render(self, batch: list[Prepared]) -> list[Rendered]:
        key = batch[0].request.key
        width = self.width(key)
        if len(batch) > width:
            return [*self._render(batch[:width]), *self._render(batch[width:])]
        started = time.perf_counter()
        try:
            images = self.renderer.render(batch + batch[-1:] * (width - len(batch)))
        except InvalidRequest as error:
            return [self.ended(one, "rejected", error.code, str(error)) for one in batch]
        except ImagemillError:
            raise
        except MemoryError as error:
            code, message = "out_of_memory", str(error)
        except Exception as error:
            if len(batch) == 1:
                log.exception("Request %s failed", batch[0].request.job_id)
            code, message = "render_error", f"{type(error).__name__}: {error}"
        else:
            return self._done(batch, images, width, started)
        # Not inside of a handler: an error holds on to all that its call had in memory.
        if code == "out_of_memory" and (self.make_room() or self._narrow(key, width)):
            return self._render(batch)
        if len(batch) > 1:  # at the same width: the others' pixels stay what they are
            half = len(batch) // 2
            return [*self._render(batch[:half]), *self._render(batch[half:])]
        return [self.ended(batch[0], "failed", code, message, started)]

    def _narrow(self, key: BatchKey, width: int) -> bool:
        """Halve the width of such batches for good; False if it is 1 already."""
        if width == 1:
            return False
        log.warning("Out of memory at width %d: going on with %d", width, width // 2)
        self._widths[key] = width // 2
        return True

    def _done(
        self, batch: list[Prepared], images: NDArray[np.float32], width: int, started: float
    ) -> list[Rendered]:
        key = batch[0].request.key
        share = (time.perf_counter() - started) / len(batch)
        stack = at_width(self.renderer.stack_for(key), width)
        return [
            Rendered(
                one.request,
                stack,
                share,
                pixels,
                seconds_load=one.seconds,
                tokens_cut=self.renderer.tokens_cut(one.request.prompt),
            )
            if np.isfinite(pixels).all()
            else self.ended(one, "failed", "non_finite", "the image has NaN pixels", started)
            for one, pixels in zip(batch, images, strict=False)
        ]

    def ended(
        self, one: Prepared, status: Status, code: str, message: str, started: float | None = None
    ) -> Rendered:
        """A request that gets no image. started: when its call did, if there was one."""
        key = one.request.key
        stack = at_width(self.renderer.stack_for(key), self.width(key))
        seconds = 0.0 if started is None else time.perf_counter() - started
        return Rendered(one.request, stack, seconds, None, status, code, message[:500], one.seconds)


@cache
def at_width(stack: Stack, width: int) -> Stack:
    """The same stack at another batch width."""
    return replace(stack, batch_width=width)  # slow, and nearly always the same
