"""The whole job on this machine: private broker, workers, plan, render, dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jobs.errors import FatalError
from jobs.output.dataset import Summary, read_summary
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.settings import Settings
from producer.control.installation import installation
from producer.control.progress import Display, follow
from producer.local.embedded import GO_ON, Crew, Embedded, embedded
from producer.local.occupancy import occupied
from producer.planning.chunks import WORKERS
from producer.planning.rates import measure, rates_file
from producer.planning.submission import Job, identify, launch, prepare

SHORTEST = 1.0  # seconds between two records that a pace may be told of


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to.

    rendered: False if there was nothing left to do; seconds: that it took. Both are about this very
    call, or about the whole run.
    """

    out: str
    summary: Summary
    rendered: bool
    seconds: float

    @classmethod
    def of_run(cls, out: str, summary: Summary) -> Outcome:
        """That of a run that has finished, whoever waited for it: from its plan to its end."""
        begun, ended = map(datetime.fromisoformat, (summary.created_at, summary.finished_at))
        rendered = summary.reused < summary.requests
        return cls(out, summary, rendered, (ended - begun).total_seconds())

    @property
    def pace(self) -> float:
        """Images a second between the first and the last record, loading of the model left out.

        0 where the records cannot tell: of a run in several pieces they include the pauses, and
        those of a single batch lie within an instant.
        """
        began = datetime.now(UTC) - timedelta(seconds=self.seconds)
        in_one_piece = datetime.fromisoformat(self.summary.created_at) >= began
        too_short = self.summary.seconds < SHORTEST
        if not in_one_piece or self.summary.reused or too_short:
            return 0.0
        return self.summary.done / self.summary.seconds


def render(
    job: Job,
    settings: Settings,
    crew: Crew,
    display: Display,
    show_page: Callable[[str], None] | None = None,
) -> Outcome:
    """Render what is missing of a job and write its dataset.

    show_page: if given, a page is open meanwhile, and it is told its address once that answers.

    Raises:
        ManifestRefused, UsageError, InvalidRequest: nothing was enqueued; perhaps because another
            process renders into the location.
        FatalError, TransientError: what is rendered is stored; the same call goes on from there.
    """
    started = time.monotonic()
    submission = identify(job)
    storage, summary, rendered = submission.storage, submission.done, False
    if summary is None:
        with occupied(storage), embedded(settings, crew) as children:
            # A worker takes seconds to start, so it starts while the manifest is read.
            children.serve([job.table.route(job.options.model).model])
            address = children.open_page() if show_page else None
            plan = prepare(submission, crew.size() or WORKERS, display)
            children.serve(plan.models)
            if show_page and address:
                show_page(f"{address()}/runs/{plan.run_id}")
            rendered = _render(plan, storage, children, display)
        summary = final_summary(storage, plan.run_id)
    if rendered:
        measure(storage, rates_file())
    return Outcome(storage.uri, summary, rendered, time.monotonic() - started)


def finish(
    plan: Plan, storage: Storage, settings: Settings, crew: Crew, display: Display
) -> Summary:
    """Render what storage lacks of a plan, on this machine, and write its dataset.

    Raises: as render.
    """
    with embedded(settings, crew) as children:
        children.serve(plan.models)
        _render(plan, storage, children, display)
    return final_summary(storage, plan.run_id)


def final_summary(storage: Storage, run_id: str) -> Summary:
    """The summary of a run that has ended.

    Raises:
        FatalError: another run has taken its output location over.
    """
    summary = read_summary(storage)
    if summary is None or summary.run_id != run_id:
        raise FatalError(
            f"{storage.uri} was written to by another run meanwhile", "Run the same command again."
        )
    return summary


def _render(plan: Plan, storage: Storage, children: Embedded, display: Display) -> bool:
    """Render what storage lacks of a plan; False if it lacked nothing but the dataset."""
    own = installation(children.settings)
    with own.reached():
        if launch(plan, storage, own.runs, own.dispatcher):
            return False
        follow(own.runs, plan.run_id, display, children.check, GO_ON)
        return True
