"""Stops runs and has them go on: paused, cancelled, resumed, retried; and says which come first.
The broker says it to the workers, run.json and the plan to whoever looks later."""

from __future__ import annotations

from dataclasses import replace

from jobs.errors import UsageError
from jobs.output.dataset import planned, write_summary
from jobs.output.plan import read_plan, write_plan
from jobs.output.storage import Storage, open_storage
from jobs.teams import Priority
from producer.control.installation import Installation
from producer.control.status import (
    Status,
    is_run_id,
    known_progress,
    look,
    planned_run,
    stored_run,
    stored_summary,
)
from producer.planning.generations import next_id, plan_next
from producer.planning.submission import launch


def pause(name: str, known: Installation) -> Status:
    """Have the workers stop a run after the batches under way, to be resumed later.

    name: its id or its output location.

    Raises:
        UsageError: the broker does not know the run, or it has ended.
    """
    run_id, out = _unfinished(name, known)
    with known.reached():
        progress = known.runs.progress(run_id)
        if progress and progress.state == "cancelled":
            raise UsageError(f"run {run_id} was cancelled: {out}", "imagemill resume has it go on.")
        known.runs.pause(run_id, f"imagemill pause stopped it.\nimagemill resume {out} goes on.")
    return look(run_id, known)


def cancel(name: str, known: Installation) -> Status:
    """Have the workers drop what is left of a run; nothing that is rendered is lost.

    Raises: as pause.
    """
    run_id, out = _unfinished(name, known)
    cancel_run(open_storage(out), run_id, known)
    return look(run_id, known)


def cancel_run(storage: Storage, run_id: str, known: Installation) -> None:
    """The same for a run that is known not to have finished, whether the broker knows it or not.

    Raises:
        TransientError: the broker cannot be reached.
    """
    with known.reached():
        if known.runs.progress(run_id):
            known.runs.set_state(run_id, "cancelled")
    write_summary(storage, replace(stored_summary(storage, run_id), state="cancelled"))


def resume(name: str, known: Installation) -> Status:
    """Send what is left of a run again, from storage alone; also after Redis was wiped.

    Raises:
        UsageError: there is no such run, it has finished, or another has its place.
        TransientError: the broker cannot be reached.
    """
    run_id, storage = _standing(name, known)
    if stored_summary(storage, run_id).state == "finished":
        raise UsageError(
            f"run {run_id} has finished already: {storage.uri}",
            "If requests failed, imagemill retry renders them again; images that are gone, "
            f"imagemill fsck {storage.uri} --repair.",
        )
    known.ping()
    plan = planned_run(storage, run_id)
    write_summary(storage, planned(plan))  # it may have been cancelled
    with known.reached():
        launch(plan, storage, known.runs, known.dispatcher)
    return look(run_id, known)


def retry(name: str, known: Installation) -> Status:
    """Render again what a finished run has no images of, as a new run in the same place.

    name: the id of the finished run, or its output location. Returns the new run's status.

    Raises:
        UsageError: there is no such run, it has not finished, another has its place, or nothing is
            worth another try.
        QuotaExceeded: its team has not enough left.
        TransientError: the broker cannot be reached.
    """
    run_id, storage = _standing(name, known)
    summary, out = stored_summary(storage, run_id), storage.uri
    if summary.state != "finished":
        raise UsageError(f"run {run_id} has not finished: {out}", "imagemill resume has it go on.")
    if not summary.without_image and not summary.unscored:
        raise UsageError(f"run {run_id} has an image of every request: {out}", "Nothing to retry.")
    if not summary.worth_trying_again:
        raise UsageError(
            f"run {run_id} has no request that may succeed when it is tried again: {out}",
            "errors.jsonl says what each lacks an image for.",
        )
    known.ping()
    earlier = planned_run(storage, run_id)
    plan = read_plan(storage, next_id(run_id)) or plan_next(storage, earlier)
    known.admit(plan)
    write_summary(storage, planned(plan))
    with known.reached():
        launch(plan, storage, known.runs, known.dispatcher)
    return look(plan.run_id, known)


def prioritize(name: str, priority: Priority, known: Installation) -> Status:
    """Give a run another priority, from its next turn on: what is queued stays where it is.

    Raises: as pause.
    """
    run_id, out = _unfinished(name, known)
    storage = open_storage(out)
    # First where resume will find it.
    write_plan(storage, replace(planned_run(storage, run_id), priority=priority))
    with known.reached():
        known.runs.set_priority(run_id, priority)
    return look(run_id, known)


def _standing(name: str, known: Installation) -> tuple[str, Storage]:
    """The id of a run, and its output location, which no other run has taken over since.

    Raises:
        UsageError: one has; or there is no such run.
        TransientError: an id was given and the broker cannot be reached.
    """
    storage = open_storage(known_progress(name, known).out if is_run_id(name) else name)
    newest = stored_run(storage)
    if is_run_id(name) and name != newest:
        raise UsageError(
            f"run {newest} has taken {storage.uri} over since",
            f"imagemill status {newest} tells how far it is.",
        )
    return newest, storage


def _unfinished(name: str, known: Installation) -> tuple[str, str]:
    """The id and the output location of a run that the broker knows."""
    run_id = name if is_run_id(name) else stored_run(open_storage(name))
    progress = known_progress(run_id, known)
    if progress.state == "finished":
        raise UsageError(
            f"run {run_id} has finished already: {progress.out}", "Nothing of it is left to render."
        )
    return run_id, progress.out
