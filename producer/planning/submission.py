"""Takes a manifest to a live run: identify → plan → send the feeds. Also what makes it resume."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from typing import IO

import orjson

from jobs.broker.dispatch import Dispatcher, start_run
from jobs.broker.runs import Runs
from jobs.errors import USAGE_ERRORS, FatalError, ImagemillError, ManifestRefused, UsageError
from jobs.ids import run_id
from jobs.models.fingerprints import route_digest
from jobs.models.table import ModelTable
from jobs.output import layout
from jobs.output.dataset import Summary, now, planned, read_summary, write_dataset, write_summary
from jobs.output.plan import Plan, Shard, read_plan, write_plan
from jobs.output.records import Row, encode_part
from jobs.output.storage import Storage, open_storage
from jobs.teams import OPEN_TEAM, Priority
from producer.planning.blocks import plan_blocks
from producer.planning.chunks import WORKERS, Calls, cut
from producer.planning.generations import next_id
from producer.planning.listener import Listener, Log
from producer.planning.manifest import manifest_digest
from producer.planning.planner import PlannedBlock
from producer.planning.rates import rates_file, read_rates
from producer.planning.reopening import gone_images, reopen
from producer.planning.repeats import Hashes
from producer.planning.resolution import PlanOptions
from producer.planning.reuse import has_earlier, reuse_records
from producer.planning.survey import Remarks, is_refused

_WRITES = 4  # shards on their way to storage at a time


@dataclass(frozen=True, slots=True)
class Job:
    """One manifest, where its images go, and how it is to be read.

    occasion: what sets it apart from other submissions of the same content, such as the nominal
    time of a schedule; none for most. team, priority: what whose turn it is goes by; another one
    does not make it another job.
    """

    manifest: str
    out: str
    table: ModelTable
    options: PlanOptions
    occasion: str = ""
    team: str = OPEN_TEAM
    priority: Priority = "normal"


@dataclass(frozen=True)
class Submission:
    """A job with its identity. `plan` is None until it is made, `finished` until its run has ended.

    gone: whether somebody has removed images from the finished dataset of its place, as far as that
    is on this machine's disk.
    """

    job: Job
    storage: Storage
    run_id: str
    plan: Plan | None = None
    finished: Summary | None = None
    gone: bool = False

    @property
    def done(self) -> Summary | None:
        """The summary of its run, if nothing is left to render."""
        return None if self.gone else self.finished


def identify(job: Job) -> Submission:
    """Find out, without planning, whether storage already knows this very job.

    The same manifest, options, models, output location and occasion have the same run id. A run
    whose weights have changed since, or which finished with failures that may pass, is left behind
    by the next generation, a new run that reuses its images; so is one that was retried.

    Raises:
        UsageError, FatalError: the manifest or the output location cannot be read, or the location
            holds a dataset that no run has written, or rows that are none of ours.
    """
    storage = open_storage(job.out)
    digest = manifest_digest(job.manifest)
    table = {name: model.model_dump(mode="json") for name, model in job.table.models.items()}
    options = asdict(job.options)
    for name in ("keep", "scorers", "rule"):
        if not options[name]:  # so that runs of before there was such an option are known
            del options[name]
    content = [digest, options, job.table.default, table, storage.uri]
    if job.table.aliases:
        content.append(job.table.aliases)
    if job.occasion:
        content.append(job.occasion)
    newest: Plan | None = None
    identity = run_id(orjson.dumps([*content, 0]))
    while plan := read_plan(storage, identity):
        newest, identity = plan, next_id(identity)
    # A run writes run.json before these, so it is looked for after them: another may begin now.
    there = [] if newest else [name for name in layout.DATASET if storage.exists(name)]
    summary = read_summary(storage)
    if summary is None and there:
        raise UsageError(
            f"{storage.name(there[0])} was not written by imagemill, and a run would replace it",
            "Choose another output location.",
        )
    finished = summary if summary and summary.state == "finished" else None
    gone = finished is not None and bool(gone_images(storage))
    fresh = Submission(job, storage, identity, gone=gone)
    if newest is None:
        return fresh
    if any(route_digest(job.table, name) != of for name, of in newest.fingerprints.items()):
        return fresh
    known = Submission(job, storage, newest.run_id, newest, gone=gone)
    if finished is None or finished.run_id != newest.run_id:
        return known
    return fresh if finished.worth_trying_again else replace(known, finished=finished)


def prepare(
    submission: Submission,
    workers: int = WORKERS,
    listener: Listener | None = None,
    keep_report: bool = False,
) -> Plan:
    """The submission's plan, made now if it does not exist; images that are gone are in it again.

    workers: how many there will be, so that the plan has work for each; listener: our log, if
    nobody watches; keep_report: whether all reasons to refuse the manifest stay in storage, where
    else nothing of it does.

    Raises:
        ManifestRefused: it has invalid lines (and skip_invalid is off); nothing is left to render.
        UsageError, FatalError: the manifest, a model or the output location does not work.
    """
    job, storage, plan = submission.job, submission.storage, submission.plan
    listener = listener or Log()
    if submission.gone and _reopen(storage, listener):
        plan = plan and read_plan(storage, submission.run_id)
    if plan is None:
        plan = _begin_plan(submission, workers, listener, keep_report)
    if plan.doubtful:
        lines = f"{plan.doubtful:,} line{'' if plan.doubtful == 1 else 's'}"
        listener.warning(f"Warning: {lines} may not say what you mean: imagemill plan shows them")
    if (plan.team, plan.priority) != (job.team, job.priority):
        plan = replace(plan, team=job.team, priority=job.priority)
        write_plan(storage, plan)
    write_summary(storage, planned(plan))
    return plan


def _reopen(storage: Storage, listener: Listener) -> bool:
    """Have the images that are gone from a place rendered again; whether there are any."""
    summary = read_summary(storage)
    if summary is None or summary.state != "finished":
        return False  # somebody else has seen to it meanwhile
    gone = gone_images(storage)
    if gone:
        images = f"{len(gone):,} image{' is' if len(gone) == 1 else 's are'}"
        listener.warning(f"{images} gone from {storage.uri}: what is asked for is rendered again")
        reopen(storage, summary.run_id, gone)
    return bool(gone)


def launch(plan: Plan, storage: Storage, runs: Runs, dispatcher: Dispatcher) -> Summary | None:
    """Make the run live. Returns its summary if nothing was left to render, else None.

    Raises:
        redis.RedisError: Redis is away; the plan stays, so the same call goes on.
    """
    if start_run(plan, storage, runs, dispatcher) is not None:
        return None
    summary = write_dataset(storage, plan)
    runs.finish(plan.run_id, summary.done, summary.failed + summary.rejected)
    return summary


def _begin_plan(
    submission: Submission, workers: int, listener: Listener, keep_report: bool
) -> Plan:
    """Make a plan; of one that cannot be made nothing stays but perhaps the report."""
    storage, run = submission.storage, submission.run_id
    undo = storage.begin(f"_run/{run}")
    try:
        return _make_plan(submission, workers, listener)
    except (*USAGE_ERRORS, FatalError) as error:
        if keep_report and isinstance(error, ManifestRefused):
            storage.remove(f"_run/{run}/plan")
            error.report = storage.name(layout.invalid(run))
        else:
            with suppress(ImagemillError):  # this one tells more
                if read_plan(storage, run) is None:  # or somebody else has made it
                    undo()
        raise


def _make_plan(submission: Submission, workers: int, listener: Listener) -> Plan:
    job, storage, run = submission.job, submission.storage, submission.run_id
    table, fingerprints = replace(job.table, commits={}), dict[str, str]()
    shards: list[Shard] = []
    elsewhere: list[list[int]] = []
    calls: list[Calls] = []
    jobs: list[Hashes] = []
    reuses = has_earlier(storage, run)  # or that of 20M lines would be 160 MB for nothing
    faults = Remarks()
    rates = read_rates(rates_file())
    requests = surely = doubtful = 0
    keeps = chooses = False
    unidentified = None
    with ExitStack() as stack:
        copy = stack.enter_context(storage.writer(layout.manifest(run)))
        report = stack.enter_context(storage.writer(layout.invalid(run)))
        writes = stack.enter_context(_Writes(storage))
        for block in plan_blocks(job.manifest, table, job.options, fingerprints, storage, rates):
            unidentified = block.unidentified
            copy.write(block.raw)
            if block.requests or block.carried:
                writes.add(layout.shard(run, len(shards)), block.shard)
                for home in block.homes:
                    elsewhere[home].append(len(shards))
                shards.append(Shard(block.requests, (), block.carried))
                elsewhere.append([])
                calls.append(block.calls)
                if reuses:
                    jobs.append(block.jobs)
            requests += block.requests
            surely += sum(some.images for some in block.tallies.values())
            keeps |= block.keeps
            doubtful += len(block.doubts)
            chooses |= block.chooses
            _report(report, block)
            faults.add(block.errors)
            listener.planning(requests + faults.lines)
    if is_refused(requests, faults, job.options, unidentified):
        raise ManifestRefused(faults.lines, faults.reasons, faults.first, requests, unidentified)
    if unidentified:
        raise unidentified
    seconds = sum(some.first_seconds() for some in calls)
    shards = [
        replace(shard, chunks=chunks, elsewhere=tuple(others))
        for shard, chunks, others in zip(shards, cut(calls, workers), elsewhere, strict=True)
    ]
    kept, reused = reuse_records(storage, run, shards, jobs)
    plan = Plan(
        run, job.manifest, job.options.seed, now(), fingerprints, tuple(kept), faults.lines, reused,
        dict(table.commits), job.team, job.priority,
    )  # fmt: skip
    seconds *= plan.left / max(1, surely)
    plan = replace(
        plan, keeps=keeps, doubtful=doubtful, seconds=seconds, scorers=job.options.scorers,
        chooses=chooses,
    )  # fmt: skip
    write_plan(storage, plan)
    return plan


def _report(report: IO[bytes], block: PlannedBlock) -> None:
    """Write the block's invalid lines as rows of errors.jsonl, one a line."""
    rows: dict[int, Row] = {}
    for error in block.errors:
        reason = f"{error.field}: {error.reason}" if error.field else error.reason
        if error.line in rows:
            rows[error.line]["message"] += f"; {reason}"
            continue
        rows[error.line] = {
            "custom_id": error.custom_id,
            "index": error.line - 1,
            "status": "invalid",
            "code": "invalid_request",
            "field": error.field,
            "message": f"line {error.line}: {reason}",
        }
    report.write(encode_part(rows.values()))


class _Writes:
    """Writes shards in threads while the next ones are planned; a fault surfaces at the latest
    when the block ends."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(_WRITES)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> _Writes:
        return self

    def add(self, path: str, data: bytes) -> None:
        self._pending.append(self._pool.submit(self._storage.write, path, data))
        if len(self._pending) > _WRITES:
            self._pending.popleft().result()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._pending:
                future.result()
