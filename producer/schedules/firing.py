"""Takes nominal times from `open` to their end: decide → launch → see how the run ends.

Every step can be taken again, by any scheduler; see producer.schedules.journal for why that
neither loses nor doubles one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import redis

from jobs.broker.counters import Counters, Series
from jobs.broker.progress import Progress
from jobs.errors import (
    USAGE_ERRORS,
    FatalError,
    ImagemillError,
    ManifestRefused,
    TransientError,
    UsageError,
)
from jobs.models.table import ModelTable
from jobs.output.dataset import now, planned, read_summary, write_summary
from jobs.output.plan import read_plan
from jobs.output.storage import open_storage
from producer.control.entry import enter
from producer.control.installation import Installation
from producer.planning.submission import Job, identify, launch
from producer.schedules.journal import End, EndState, Fire, Journal, Opened, Pause, end_of
from producer.schedules.news import News
from producer.schedules.policy import judge
from producer.schedules.table import Schedule
from producer.schedules.templates import moment_of


@dataclass(frozen=True)
class Firing:
    """Begins the runs of schedules and sees to their ends. tell: is told what happens.

    stores: see jobs.inputs.stores.
    """

    known: Installation
    table: ModelTable
    stores: tuple[str, ...]
    tell: Callable[[News], None]

    def job(self, schedule: Schedule, nominal: str) -> Job:
        """What is submitted for a nominal time. Schedule and time set it apart from all others."""
        moment = moment_of(nominal)
        options = schedule.options_at(moment, self.stores)
        manifest, out = schedule.manifest_at(moment), schedule.out_at(moment)
        occasion = f"{schedule.name} {nominal}"
        return Job(manifest, out, self.table, options, occasion, schedule.team, schedule.priority)

    def tend(self, journal: Journal) -> None:
        """Take every open nominal time of a schedule on as far as it goes now, the oldest first.

        Only one process at a time should, or work is done twice (but no run is).

        Raises:
            TransientError: the broker or the storage is away.
        """
        running, waiting = list[Fire](), 0
        paused = journal.paused() is not None
        for nominal in journal.opened():
            fire = journal.fire(nominal)
            if fire is None:
                opened = journal.opened_as(nominal)
                if opened is None:  # another has just closed it
                    continue
                if opened.manual or not paused:
                    fire = self._decide(journal, nominal, opened, _Beside(running, waiting))
            if fire is None:
                waiting += 1
            elif not self._is_over(journal, fire):
                running.append(fire)

    def fire(self, journal: Journal, nominal: str) -> Fire:
        """Begin the run of a nominal time now, whatever else runs; for run-now.

        Raises:
            ManifestRefused, UsageError, InvalidRequest: its manifest or its model does not work;
                an earlier run still writes to the same place.
            TransientError, FatalError: storage or broker; a scheduler tries it again.
        """
        out = _out(journal.schedule, nominal)
        for other in filter(None, map(journal.fire, journal.opened())):
            if other.out == out and not self._is_over(journal, other):
                raise UsageError(
                    f"run {other.run_id} goes on in {out}",
                    "Wait for its end, or put {time} into the schedule's out.",
                )
        journal.note(nominal, Opened(manual=True))
        try:
            fire = self._begin(journal, nominal, Opened(manual=True))
        except USAGE_ERRORS:
            # The person who asked is told; that a schedule fails is another matter.
            journal.close(nominal)
            raise
        self._launch(fire)
        return fire

    def _decide(
        self, journal: Journal, nominal: str, opened: Opened, beside: _Beside
    ) -> Fire | None:
        """Decide on a nominal time; None if that has to wait."""
        verdict = judge(journal.schedule, len(beside.running), beside.waiting)
        if verdict == "skip" and not opened.manual:
            reason = "an earlier run goes on (overlap = skip)"
            return journal.decide(Fire(nominal, "skipped", now(), reason=reason))
        # Two runs never write to one place at a time.
        shared = _out(journal.schedule, nominal) in {fire.out for fire in beside.running}
        if shared or (verdict == "wait" and not opened.manual):
            return None
        try:
            return self._begin(journal, nominal, opened)
        except USAGE_ERRORS as error:
            reason = _reason(error)
            return journal.decide(Fire(nominal, "refused", now(), opened.manual, reason=reason))
        except FatalError as error:
            # For a person to see to; until then it is tried again.
            if opened.problem != error.message:
                journal.note(nominal, replace(opened, problem=error.message))
                self._tell(journal, nominal, "waits", str(error))
            return None

    def _begin(self, journal: Journal, nominal: str, opened: Opened) -> Fire:
        """Plan a run and decide on it. Returns the decision that stands."""
        job = self.job(journal.schedule, nominal)
        submission = identify(job)
        plan = enter(self.known, submission)
        out = submission.storage.uri
        return journal.decide(
            Fire(nominal, "begun", now(), opened.manual, plan.run_id, out, job.manifest)
        )

    def _is_over(self, journal: Journal, fire: Fire) -> bool:
        """See how far a decided nominal time is, and write its end if it is there."""
        end = journal.end(fire.nominal)
        if end is None and fire.decision == "begun":
            progress = self._progress(fire)
            end = self._end(fire, progress)
            if end is None and progress is None:
                self._launch(fire)
                self._tell(journal, fire.nominal, "begun", fire=fire)
                lag = time.time() - moment_of(fire.nominal).timestamp()
                self._count({("schedule_begun",): 1, ("schedule_lag_seconds",): max(0.0, lag)})
            if end is None:
                return False
            journal.write_end(fire.nominal, end)
        self._close(journal, fire, end)
        return True

    def _close(self, journal: Journal, fire: Fire, end: End | None) -> None:
        failed = fire.decision == "refused" or (end is not None and end.is_failure)
        row = 0 if fire.decision == "skipped" else journal.count_failure(fire.nominal, failed)
        most = journal.schedule.pause_after_failures
        pause = most is not None and row >= most
        if failed:
            self._count({("schedule_failures",): 1})
        if pause:
            journal.pause(Pause(now(), f"{row} failures in a row"))
        journal.close(fire.nominal)
        if end:
            counts = f"{end.done:,} images, {end.without_image:,} without"
            self._tell(journal, fire.nominal, end.state, counts, fire)
        else:
            self._tell(journal, fire.nominal, fire.decision, fire.reason)
        if pause:
            self._tell(journal, fire.nominal, "paused", f"{row} failures in a row")

    def _progress(self, fire: Fire) -> Progress | None:
        with self.known.reached():
            return self.known.runs.progress(fire.run_id)

    def _end(self, fire: Fire, progress: Progress | None) -> End | None:
        """How a run has ended; None if it has not, as far as broker and storage know."""
        state = progress.state if progress else None
        if state not in (None, "finished", "cancelled"):
            return None
        storage = open_storage(fire.out)
        summary = read_summary(storage)
        if summary is not None and summary.run_id == fire.run_id and summary.state != "running":
            return end_of(summary)
        if progress is not None and state is not None:
            ended: EndState = "cancelled" if state == "cancelled" else "finished"
            return End(ended, now(), progress.done, progress.failed, progress.failed)
        return End("removed", now()) if read_plan(storage, fire.run_id) is None else None

    def _launch(self, fire: Fire) -> None:
        """Make a run live that is decided on: for the first time, or after Redis forgot it."""
        storage = open_storage(fire.out)
        plan = read_plan(storage, fire.run_id)
        if plan is None:
            raise TransientError(f"run {fire.run_id} has no plan in {fire.out}")
        summary = read_summary(storage)
        if summary is None or summary.run_id != fire.run_id:
            write_summary(storage, planned(plan))  # of two that planned, one was not decided on
        with self.known.reached():
            launch(plan, storage, self.known.runs, self.known.dispatcher)

    def _count(self, sums: Mapping[Series, float]) -> None:
        with suppress(redis.RedisError):  # a run is worth more than its figure
            Counters(self.known.runs.client, self.known.runs.prefix).add(sums)

    def _tell(
        self, journal: Journal, nominal: str, what: str, text: str = "", fire: Fire | None = None
    ) -> None:
        schedule = journal.schedule
        local = schedule.local(moment_of(nominal)).isoformat()
        run_id, out = (fire.run_id, fire.out) if fire else ("", "")
        self.tell(News(schedule.name, what, text, local, run_id, out))


@dataclass(frozen=True, slots=True)
class _Beside:
    """What is open of the nominal times before one."""

    running: list[Fire]
    waiting: int


def _out(schedule: Schedule, nominal: str) -> str:
    return open_storage(schedule.out_at(moment_of(nominal))).uri


def _reason(error: ImagemillError) -> str:
    """What failed; of a refused manifest also its first bad line."""
    first = f": {error.errors[0]}" if isinstance(error, ManifestRefused) and error.errors else ""
    return f"{error.message}{first}"
