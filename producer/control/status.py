"""Where a run stands: from the broker when it knows, from storage when it does not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from jobs.broker.backlog import Backlog
from jobs.broker.fleet import Fleet, Worker
from jobs.broker.progress import Progress
from jobs.errors import TransientError, UsageError
from jobs.output.dataset import Summary, planned, read_summary
from jobs.output.plan import Plan, read_plan
from jobs.output.records import chunks_done
from jobs.output.storage import Storage, open_storage
from jobs.teams import OPEN_TEAM, Priority
from producer.control.installation import Installation

_RUN_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Status:
    """One run. From storage, `done` counts all settled requests until the run has finished.

    state: as in jobs.broker.runs, or "unfinished" where only storage knows the run; problem: why
    it is paused; source: who said so. retries, deaths, suspects: as there, 0 from storage;
    unserved: models that it waits for, as no worker has them; unfit: which workers cannot render
    some of its models, and why; busy: the share of the devices' time in which they rendered;
    useful: the share of the rendered slots that became images; both 0 where that is not known;
    quarantined: messages that were put aside, of all runs together; team, priority: whose turn it
    is goes by them.
    """

    run_id: str
    out: str
    state: str
    requests: int
    done: int
    failed: int
    chunks: int
    chunks_done: int
    source: Literal["broker", "storage"]
    problem: str = ""
    retries: int = 0
    deaths: int = 0
    suspects: int = 0
    unserved: tuple[str, ...] = ()
    quarantined: int = 0
    unfit: tuple[str, ...] = ()
    busy: float = 0.0
    useful: float = 0.0
    team: str = OPEN_TEAM
    priority: Priority = "normal"


def is_run_id(name: str) -> bool:
    """Whether a run is named by its id, not by its output location."""
    return _RUN_ID.fullmatch(name) is not None


def look(name: str, known: Installation) -> Status:
    """The state of a run, by its id or its output location.

    Raises:
        UsageError: there is no such run.
        TransientError: a run id was given and the broker cannot be reached.
    """
    if is_run_id(name):
        return _of_progress(known_progress(name, known), _look_around(known))
    storage = open_storage(name)
    run_id = stored_run(storage)
    with suppress(TransientError), known.reached():
        progress = known.runs.progress(run_id)
        if progress and progress.out == storage.uri:
            return _of_progress(progress, _look_around(known))
    return _of_storage(storage, run_id)


def list_runs(known: Installation) -> list[Status]:
    """The runs that the broker knows, newest first."""
    around = _look_around(known)
    with known.reached():
        return [_of_progress(progress, around) for progress in known.runs.newest()]


def quarantined(known: Installation) -> int:
    """How many messages were put aside because they were not ours; 0 without a broker."""
    with suppress(TransientError), known.reached():
        return Backlog(known.runs.client, known.runs.prefix).quarantined()
    return 0


def stored_run(storage: Storage) -> str:
    """The id of the run that wrote last to an output location.

    Raises:
        UsageError: there is none.
    """
    if summary := read_summary(storage):
        return summary.run_id
    raise UsageError(
        f"{storage.uri} is neither the output of a run nor a run id",
        "imagemill status lists the runs that the broker knows.",
    )


def known_progress(run_id: str, known: Installation) -> Progress:
    """Where a run stands that the broker must know.

    Raises:
        UsageError: it does not.
    """
    with known.reached():
        progress = known.runs.progress(run_id)
    if progress is None:
        raise UsageError(
            f"run {run_id} is not known to the broker, so nothing of it is under way",
            "imagemill status OUT tells what storage has of it, imagemill resume OUT goes on.",
        )
    return progress


def planned_run(storage: Storage, run_id: str) -> Plan:
    """The plan of a run. Raises UsageError if it was never completed."""
    plan = read_plan(storage, run_id)
    if plan is None:
        raise UsageError(f"{storage.uri} has no complete plan of run {run_id}", "Submit it again.")
    return plan


def stored_summary(storage: Storage, run_id: str) -> Summary:
    """What run.json says of a run, or would say if another had not written it since."""
    summary = read_summary(storage)
    same = summary is not None and summary.run_id == run_id
    return summary if summary and same else planned(planned_run(storage, run_id))


@dataclass(frozen=True, slots=True)
class _Around:
    """What is the same for all runs of an installation: its workers, messages put aside."""

    workers: list[Worker]
    quarantined: int

    def unserved(self, models: Iterable[str]) -> tuple[str, ...]:
        """Those of the models that no worker renders."""
        served = {model for worker in self.workers for model in worker.serves}
        return tuple(sorted(set(models) - served))

    def unfit(self, models: Iterable[str]) -> tuple[str, ...]:
        """Why some workers do not render some of the models."""
        return tuple(
            f"{worker.name} does not render {model}: {reason}"
            for model in models
            for worker in self.workers
            if (reason := worker.unfit.get(model))
        )


def _look_around(known: Installation) -> _Around:
    with known.reached():
        workers = Fleet(known.runs.client, known.runs.prefix).workers()
    return _Around(workers, quarantined(known))


def _of_progress(progress: Progress, around: _Around) -> Status:
    models = progress.models if progress.state == "running" else ()
    return Status(
        run_id=progress.run_id,
        out=progress.out,
        state=progress.state,
        requests=progress.requests,
        done=progress.done,
        failed=progress.failed,
        chunks=progress.chunks,
        chunks_done=progress.chunks_done,
        source="broker",
        problem=progress.problem,
        retries=progress.retries,
        deaths=progress.deaths,
        suspects=progress.suspects,
        unserved=around.unserved(models),
        quarantined=around.quarantined,
        unfit=around.unfit(models),
        busy=round(progress.effort.busy, 4),
        useful=round(progress.effort.useful, 4),
        team=progress.team,
        priority=progress.priority,
    )


def _of_storage(storage: Storage, run_id: str) -> Status:
    plan = planned_run(storage, run_id)
    summary = stored_summary(storage, run_id)
    complete = chunks_done(storage, plan)
    sizes = [plan.shards[s].chunks[c].stop - plan.shards[s].chunks[c].start for s, c in complete]
    ended = summary.state == "finished"
    begun = plan.until(plan.round_after(complete))
    return Status(
        run_id=run_id,
        out=storage.uri,
        state=summary.state if summary.state != "running" else "unfinished",
        requests=summary.requests if ended else begun,
        done=summary.done if ended else plan.until(-1) + sum(sizes),
        failed=summary.failed + summary.rejected if ended else 0,
        chunks=plan.chunks,
        chunks_done=len(complete),
        source="storage",
        busy=round(summary.busy, 4),
        useful=round(summary.useful, 4),
        team=plan.team,
        priority=plan.priority,
    )
