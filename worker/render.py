"""Batches to images. One bad request never costs another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jobs.errors import FatalError, ImagemillError, InvalidRequest
from jobs.output.records import RecordStatus, Stack
from jobs.requests import BatchKey, Request
from worker.inputs import Prepared
from worker.interludes import Interlude, NoRoom

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a request has no image although its call succeeded."""

    status: RecordStatus
    code: str
    message: str


NON_FINITE = Flaw("failed", "non_finite", "the image has NaN pixels")
NSFW = Flaw("rejected", "nsfw", "refused by the model's safety checker")

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Image = Pixels | Flaw

Pause = Callable[[], bool]  # to be called between two steps; true if the device did other things


def no_pause() -> bool:
    """Nobody else wants the device."""
    return False


class Renderer(Protocol):
    """A loaded model."""

    def render(self, batch: list[Prepared], pause: Pause) -> Sequence[Image]:
        """What became of requests that share what `call_key` says.

        Within `pause` it may be called again, for other requests.

        Raises:
            MemoryError: the device has too little memory for so many at once.
            InvalidRequest: the model does not take what the requests ask for.
        """

    def call_key(self, key: BatchKey) -> BatchKey:
        """What all requests of one call share."""

    def slots(self, key: BatchKey) -> int:
        """How many requests one call for this key has room for."""

    def fits_inputs(self) -> bool:
        """Whether images of edits are scaled to the output's size, or seen as they are."""

    def save_memory(self, key: BatchKey) -> bool:
        """After a MemoryError: need less for this key from now on. False if nothing is left to try.

        Records of what it renders then tell it in their stack's modes.
        """

    def stack_for(self, key: BatchKey) -> Stack:
        """What renders requests of this key."""

    def tokens_cut(self, prompt: str) -> int:
        """Tokens at a prompt's end that the model does not read."""

    def compile_seconds(self) -> float:
        """What the last call spent on compiling, also one that failed."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One request's pixels, or the code and message of its failure.

    stack: what rendered it; its batch_width counts the padding. seconds: its share of the call, but
    for compiling, of which it has a share as well; started: of the call, in monotonic seconds;
    together: how many requests shared it. seconds_lost: its share of calls before, which failed.
    """

    request: Request
    stack: Stack
    seconds: float
    pixels: Pixels | None = None
    status: RecordStatus = "done"
    code: str = ""
    message: str = ""
    seconds_load: float = 0.0
    seconds_compile: float = 0.0
    seconds_lost: float = 0.0
    tokens_cut: int = 0
    started: float = 0.0
    together: int = 0


def failed(one: Rendered, code: str, message: str) -> Rendered:
    """The same request without an image; `message` says why."""
    return replace(one, pixels=None, status="failed", code=code, message=message[:500])


def batches(
    requests: list[Request],
    slots: Callable[[BatchKey], int],
    call_key: Callable[[BatchKey], BatchKey] = lambda key: key,
) -> Iterator[list[Request]]:
    """Runs of at most slots(key) requests that may share a call, in the given order."""
    for key, group in groupby(requests, key=lambda request: call_key(request.key)):
        same, most = list(group), slots(key)
        for start in range(0, len(same), most):
            yield same[start : start + most]


@dataclass(frozen=True, slots=True)
class _Call:
    """A pipeline call. seconds, compiling, lost: what each of its requests has a share of."""

    slots: int
    started: float
    seconds: float
    compiling: float
    together: int
    lost: float


@dataclass
class BatchRenderer:
    """Fills batches up to a number of slots, so that no pixel depends on how full a batch is.

    Pads each batch by repeating its last request. Where memory is short the slots are halved, and
    stay so for that batch key as long as the process lives; records tell the number.

    make_room: frees what else lies in the device's memory; true if there was something.
    """

    renderer: Renderer
    make_room: Callable[[], bool] = lambda: False
    _slots: dict[BatchKey, int] = field(default_factory=dict)

    def slots(self, key: BatchKey) -> int:
        """The most requests of one batch."""
        return self._slots.get(self.call_key(key)) or self.renderer.slots(key)

    def call_key(self, key: BatchKey) -> BatchKey:
        """What all requests of one call share."""
        return self.renderer.call_key(key)

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

    def render(
        self, batch: list[Prepared], interlude: Interlude | None = None, beside: bool = False
    ) -> list[Rendered]:
        """What became of each request of a batch, in order.

        interlude: what it makes way for between two steps; beside: it is in one itself.

        Raises:
            NoRoom: there is no memory for it beside the batch under way.
        """
        good = [one for one in batch if one.problem is None]
        rendered = iter(self._render(good, interlude, beside, 0.0) if good else [])
        return [
            next(rendered)
            if one.problem is None
            else self.ended(one, "rejected", one.problem.code, str(one.problem))
            for one in batch
        ]

    def _render(
        self, batch: list[Prepared], interlude: Interlude | None, beside: bool, lost: float
    ) -> list[Rendered]:
        """lost: what each request has lost in calls that failed."""
        key = batch[0].request.key
        slots = self.slots(key)
        if len(batch) > slots:
            return self._in_two(batch, slots, interlude, beside, lost)
        started = time.monotonic()
        elsewhere = interlude.seconds if interlude else 0.0
        padded = batch + batch[-1:] * (slots - len(batch))
        images: Sequence[Image] | None = None
        code = message = ""
        try:
            images = self.renderer.render(padded, interlude or no_pause)
        except InvalidRequest as error:
            images = [Flaw("rejected", error.code, str(error))] * len(batch)
        except ImagemillError:
            raise
        except MemoryError as error:
            code, message = "out_of_memory", str(error)
        except Exception as error:
            if len(batch) == 1:
                job = batch[0].request.job_id
                log.exception("Request %s failed", job, extra={"job": job})
            code, message = "render_error", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - started
        if interlude:
            seconds -= interlude.seconds - elsewhere
        compiling = self.renderer.compile_seconds()
        share = (seconds - compiling) / len(batch)
        call = _Call(slots, started, share, compiling / len(batch), len(batch), lost)
        if images is not None:
            return self._ended(batch, images, call)
        # Not inside of a handler: an error holds on to all that its call had in memory.
        if code == "out_of_memory":
            if beside:
                raise NoRoom(message)
            if self.make_room() or self.renderer.save_memory(key) or self._narrow(key, slots):
                return self._render(batch, interlude, beside, lost + share)
        if len(batch) > 1:  # with the same slots: the others' pixels stay what they are
            return self._in_two(batch, len(batch) // 2, interlude, beside, lost + share)
        return self._ended(batch, [Flaw("failed", code, message)], call)

    def _in_two(
        self,
        batch: list[Prepared],
        first: int,
        interlude: Interlude | None,
        beside: bool,
        lost: float,
    ) -> list[Rendered]:
        parts = batch[:first], batch[first:]
        return [one for part in parts for one in self._render(part, interlude, beside, lost)]

    def _narrow(self, key: BatchKey, slots: int) -> bool:
        """Halve the slots of such batches for good; False if it is 1 already."""
        if slots == 1:
            return False
        log.warning("Out of memory with %d slots: going on with %d", slots, slots // 2)
        self._slots[self.call_key(key)] = slots // 2
        return True

    def _ended(self, batch: list[Prepared], images: Sequence[Image], call: _Call) -> list[Rendered]:
        """What became of the requests of one call."""
        stack = with_slots(self.renderer.stack_for(batch[0].request.key), call.slots)
        ended = [
            Rendered(
                one.request,
                stack,
                call.seconds,
                seconds_load=one.seconds,
                seconds_compile=call.compiling,
                seconds_lost=call.lost,
                started=call.started,
                together=call.together,
            )
            for one in batch
        ]
        return [
            replace(one, status=image.status, code=image.code, message=image.message[:500])
            if isinstance(image, Flaw)
            else replace(one, pixels=image, tokens_cut=self.renderer.tokens_cut(one.request.prompt))
            for one, image in zip(ended, images, strict=False)  # padding is dropped
        ]

    def ended(self, one: Prepared, status: RecordStatus, code: str, message: str) -> Rendered:
        """A request that gets no image, and that no call was made for."""
        key = one.request.key
        stack = with_slots(self.renderer.stack_for(key), self.slots(key))
        failure = Rendered(one.request, stack, 0.0, None, status, code, message[:500])
        return replace(failure, seconds_load=one.seconds)


@cache
def with_slots(stack: Stack, slots: int) -> Stack:
    """The same stack with another number of slots."""
    return replace(stack, batch_width=slots)  # slow, and nearly always the same
