"""One batch, whoever asked for it: load inputs → render → check → hand on to be stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jobs.errors import FatalError
from jobs.output.plan import Plan
from jobs.traces import span
from worker.faults import LIKE_FAILURES, Streaks, Unfit, own_fault
from worker.inputs import Loading
from worker.interludes import Interlude
from worker.process.watchdog import Watchdog
from worker.render import Rendered, failed
from worker.renderers import Renderers


class Sink(Protocol):
    """Whoever encodes and stores what was rendered: a chunk's output, or the answers to calls."""

    def take(self, batch: list[Rendered]) -> None:
        """Begin to store a batch; may wait while too many are under way.

        Raises:
            TransientError, FatalError: an earlier image could not be stored.
        """


def refuse_broken(one: Rendered) -> Rendered:
    """What is no picture is a failure: (height, width, 3) values are one."""
    if one.pixels is None:
        return one
    if one.pixels.ndim != 3 or one.pixels.shape[2] != 3:
        shape = " x ".join(map(str, one.pixels.shape))
        return failed(one, "render_error", f"the pipeline made {shape} values, not RGB")
    return one


@dataclass(frozen=True)
class Stage:
    """Renders batches on this process's device.

    batch_seconds: until a batch on the device counts as hung; after: what is done with each image
    before it is stored, in this order.
    """

    renderers: Renderers
    batch_seconds: float
    after: Sequence[Callable[[Rendered], Rendered]] = (refuse_broken,)
    streaks: Streaks = field(default_factory=Streaks)
    watchdog: Watchdog = field(default_factory=Watchdog)

    def run(
        self,
        model: str,
        batch: Loading,
        sink: Sink,
        plan: Plan | None = None,
        interlude: Interlude | None = None,
        beside: bool = False,
    ) -> None:
        """Render a batch and hand it to the sink.

        plan: of a run, which gives up a model that fails every request. Callers are told of each
        failure, and none of them must stop the others. interlude: what it makes way for; beside:
        it is in one itself, and the model is loaded.

        Raises:
            NoRoom: it does not fit beside the batch under way.
            TransientError, FatalError: inputs or storage are not to be had.
            Unfit: the model is not, on this worker; or it fails request after request, and then
                this batch has no records, so that it is rendered again.
        """
        with span("inputs"):
            prepared = batch.wait()  # before the clock starts: slow inputs are no hung device
        with span("load", model=model):
            renderer = self.renderers.get(model, plan.commits if plan else {})
        adapter, counts = batch.requests[0].key.adapter, self.renderers.counts
        with (
            span("render", model=model, requests=len(prepared)),
            own_fault(model, whole=not adapter),
            self.watchdog.watch(self.batch_seconds),
            counts.timed(model, "render", interlude),
        ):
            rendered = renderer.render(prepared, interlude, beside)
        calls = {one.started: one.stack.batch_width for one in rendered if one.together}
        counts.batch(model, adapter, list(calls.values()))
        for step in self.after:
            rendered = [step(one) for one in rendered]
        if plan:
            self._check_streak(model, rendered)
        sink.take(rendered)

    def _check_streak(self, model: str, rendered: list[Rendered]) -> None:
        # Requests that are too large follow each other, and are no fault of the model.
        faults = (one.status == "failed" and one.code != "out_of_memory" for one in rendered)
        texts = (f"{one.code}: {one.message}" for one in rendered)
        failures = [text if bad else "" for bad, text in zip(faults, texts, strict=True)]
        if text := self.streaks.note(rendered[0].request.key.route, failures):
            error = FatalError(
                f"{LIKE_FAILURES} requests in a row failed alike: {text}",
                "Mend what is wrong with the model, then resume the run; or leave such lines out.",
            )
            raise Unfit(model, False, error)
