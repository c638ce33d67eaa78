"""What takes a batch on: manifest → run → output files. Each step can be taken again.

A batch is an ordinary run with OpenAI's face.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal

from jobs.broker.progress import Progress
from jobs.broker.quotas import QuotaExceeded
from jobs.errors import (
    FatalError,
    InvalidRequest,
    LineError,
    ManifestRefused,
    TransientError,
    UsageError,
)
from jobs.inputs.images import InputPolicy, check_image, load_input, store_input
from jobs.models.table import ModelTable
from jobs.output.plan import Plan, read_plan
from producer.api.files.shelf import Shelf, part_id
from producer.api.openai.batch.lines import (
    STORED,
    Show,
    Translation,
    b64_of,
    results,
    settled_lines,
    translate,
)
from producer.api.openai.batch.store import (
    BatchError,
    BatchErrors,
    BatchStatus,
    BatchStore,
    RequestCounts,
    Started,
    Ticket,
)
from producer.api.openai.bodies import ImageRefParam
from producer.control.installation import Installation
from producer.control.stopping import cancel_run
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, launch, prepare

LOOK_SECONDS = 10.0  # a batch whose run is under way is read from storage so often
SETTLE_SECONDS = 2.0  # a stopped run's workers get so long at least to store what they have
SETTLE_MOST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Next:
    """When a batch is to be looked at again: at `at`, in Unix seconds, or when its run ends.

    run_id: empty as long as there is no run to watch.
    """

    at: float
    run_id: str = ""


@dataclass(frozen=True)
class Steps:
    """The steps of a deployment's batches. Every method blocks.

    stopping: once it is set, what takes long ends soon, to be taken again later.
    """

    store: BatchStore
    shelf: Shelf
    known: Installation
    table: ModelTable
    policy: InputPolicy
    stopping: Event = field(default_factory=Event)

    def advance(self, ticket: Ticket) -> Next | None:
        """Take the next step of a batch; None if it has ended.

        Raises:
            ImagemillError: it cannot be taken now.
        """
        if self.store.final(ticket):
            return None
        started = self.store.started(ticket)
        progress = self.progress(started) if started else None
        late = time.time() >= ticket.expires_at
        if progress and progress.state == "cancelled" and not late:  # by `imagemill cancel`
            self.store.cancel(ticket)
        cancelled = self.store.cancelled_at(ticket)
        stopped: Literal["cancelled", "expired"] | None = (
            "cancelled" if cancelled else "expired" if late else None
        )
        if started is None:
            if stopped:
                self.store.end(ticket, stopped)
                return None
            return self._start(ticket)
        if progress and progress.state == "finished":
            self._finish(ticket, started, "completed")
            return None
        if stopped:
            if self._settles(ticket, started):
                return Next(time.time() + 1)
            self._finish(ticket, started, stopped)
            return None
        if progress is None:  # Redis has forgotten the run; storage has not
            self._launch(ticket, started.run_id)
        return Next(min(time.time() + LOOK_SECONDS, ticket.expires_at), started.run_id)

    def progress(self, started: Started) -> Progress | None:
        """Where the run of a batch stands; None if Redis has forgotten it."""
        with self.known.reached():
            return self.known.runs.progress(started.run_id)

    def _start(self, ticket: Ticket) -> Next | None:
        try:
            found = self._translate(ticket)
            if found.errors:
                self._fail(ticket, found.errors)
                return None
            run_id = self._plan(ticket)
        except (InvalidRequest, UsageError) as error:
            self._fail(ticket, [LineError(0, "", "input_file_id", error.message)])
            return None
        started = Started(run_id, int(time.time()), found.requests, found.refused)
        plan = read_plan(self.store.out(ticket), run_id)
        if plan is None:  # no request is worth rendering
            self._finish(ticket, started, "completed")
            return None
        try:
            self.known.admit(plan)
        except QuotaExceeded as error:
            self._end_failed(ticket, BatchError(code="quota_exceeded", message=str(error)))
            return None
        self.store.start(ticket, started)
        self._launch(ticket, run_id)
        return Next(time.time() + 1, run_id)

    def _translate(self, ticket: Ticket) -> Translation:
        storage, team, out = self.store.storage, ticket.team, self.store.out(ticket)

        def load(reference: ImageRefParam) -> str:
            if self.stopping.is_set():
                raise TransientError("this process ends")
            if reference.file_id is not None:
                data = self.shelf.read(team, reference.file_id, self.policy.max_bytes)
                check_image(data, self.policy)
            elif (url := reference.image_url or "").startswith(("http:", "https:")):
                return url  # the worker that renders it fetches it
            else:
                data = load_input(url, self.policy)
            return store_input(out, data)

        self.shelf.get(team, ticket.input_file_id)
        with (
            storage.reader(self.shelf.content_path(team, ticket.input_file_id)) as source,
            storage.writer(f"{ticket.folder}/manifest.jsonl") as manifest,
            storage.writer(f"{ticket.folder}/asked.jsonl") as asked,
        ):
            return translate(source, manifest, asked, ticket.endpoint, load)

    def _plan(self, ticket: Ticket) -> str:
        """The id of the batch's run. Without a plan, not one of its lines can be rendered."""
        manifest = self.store.storage.name(f"{ticket.folder}/manifest.jsonl")
        options = PlanOptions(skip_invalid=True)
        out = self.store.out(ticket).uri
        submission = identify(
            Job(manifest, out, self.table, options, team=ticket.team, priority=ticket.priority)
        )
        with suppress(ManifestRefused):  # each line has its reason among the run's invalid ones
            prepare(submission, self.known.workers(), keep_report=True)
        return submission.run_id

    def _launch(self, ticket: Ticket, run_id: str) -> None:
        out = self.store.out(ticket)
        plan = read_plan(out, run_id)
        if plan is None:
            raise FatalError(f"the plan of batch {ticket.id} is gone", "Submit the batch again.")
        with self.known.reached():
            launch(plan, out, self.known.runs, self.known.dispatcher)

    def _settles(self, ticket: Ticket, started: Started) -> bool:
        """Stop a batch's run; whether workers may still be storing what they have rendered."""
        since = self.store.stopped_at(ticket)
        if since is None:
            cancel_run(self.store.out(ticket), started.run_id, self.known)
            # From now on, however long ago the batch expired: workers learn of it only now.
            self.store.stop(ticket)
            return True
        with self.known.reached():
            busy = self.known.runs.attempts.is_busy(started.run_id)
        waited = time.time() - since
        return waited < SETTLE_SECONDS or (busy and waited < SETTLE_MOST_SECONDS)

    def _finish(self, ticket: Ticket, started: Started, status: BatchStatus) -> None:
        """Write the output and error files of a run that has ended one way or another."""
        storage, out, now = self.store.storage, self.store.out(ticket), int(time.time())
        plan: Plan | None = read_plan(out, started.run_id)
        settled = settled_lines(out, started.run_id, plan)
        counts = RequestCounts(total=started.requests)
        files: dict[str, Any] = {}
        with ExitStack() as stack:
            asked = stack.enter_context(storage.reader(f"{ticket.folder}/asked.jsonl"))
            for done, line in results(asked, settled, now, f"batch_{status}", self._shows(ticket)):
                kind = "output" if done else "error"
                if kind not in files:
                    # Ids of the batch's own: a second attempt replaces the first one's files.
                    files[kind] = stack.enter_context(
                        self.shelf.new(
                            ticket.team,
                            f"{ticket.id}_{kind}.jsonl",
                            "batch_output",
                            ticket.output_seconds,
                            part_id(ticket.id, 0 if done else 1),
                        )
                    )
                files[kind][1].write(line)
                counts.completed += done
                counts.failed += not done
        self.store.end(
            ticket,
            status,
            **{f"{kind}_file_id": file.id for kind, (file, _) in files.items()},
            request_counts=counts,
            in_progress_at=started.at,
            finalizing_at=now,
        )

    def _shows(self, ticket: Ticket) -> Mapping[str, Show]:
        def url(path: str) -> dict[str, str]:
            return {"url": f"{STORED}{ticket.folder}/out/{path}"}

        return {"url": url, "b64_json": b64_of(self.store.out(ticket))}

    def _fail(self, ticket: Ticket, errors: list[LineError]) -> None:
        found = [
            BatchError(
                code="invalid_line" if error.line else "invalid_file",
                message=f"{error.field}: {error.reason}" if error.field else error.reason,
                param=error.field or None,
                line=error.line or None,
            )
            for error in errors
        ]
        self._end_failed(ticket, *found)

    def _end_failed(self, ticket: Ticket, *errors: BatchError) -> None:
        self.store.end(ticket, "failed", errors=BatchErrors(data=list(errors)))
