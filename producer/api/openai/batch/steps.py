"""What takes a batch on: manifest → run → output files. Each step can be taken again.

A batch is an ordinary run with OpenAI's face.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from jobs.broker.runs import Progress
from jobs.errors import FatalError, InvalidRequest, LineError, ManifestRefused, UsageError
from jobs.inputs.images import InputPolicy, check_image, load_input, store_input
from jobs.models.table import ModelTable
from jobs.output.plan import Plan, read_plan
from producer.api.access.signing import Signer
from producer.api.files.shelf import content_path, find_file, new_file, part_id, read_file
from producer.api.openai.batch.lines import Show, Translation, b64_of, results, translate
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
from producer.api.wire.errors import ApiError
from producer.control.installation import Installation
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, launch, prepare

SETTLE_SECONDS = 2.0  # a stopped run's workers get so long at least to store what they have
SETTLE_MOST_SECONDS = 600.0
OUTPUT_URL_SECONDS = 7 * 24 * 3600  # the most that S3 allows


@dataclass(frozen=True)
class Steps:
    """The steps of a deployment's batches. Every method blocks."""

    store: BatchStore
    known: Installation
    table: ModelTable
    policy: InputPolicy
    signer: Signer

    def advance(self, ticket: Ticket) -> bool:
        """Take the next step of a batch; true if it has ended.

        Raises:
            ImagemillError: it cannot be taken now.
        """
        if self.store.final(ticket):
            return True
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
                return True
            return self._start(ticket)
        if progress and progress.state == "finished":
            return self._finish(ticket, started, "completed")
        if stopped:
            waited = time.time() - (cancelled or ticket.expires_at)
            if self._settles(started, waited):
                return False
            return self._finish(ticket, started, stopped)
        if progress is None:  # Redis has forgotten the run; storage has not
            self._launch(ticket, started.run_id)
        return False

    def progress(self, started: Started) -> Progress | None:
        """Where the run of a batch stands; None if Redis has forgotten it."""
        with self.known.reached():
            return self.known.runs.progress(started.run_id)

    def _start(self, ticket: Ticket) -> bool:
        try:
            found = self._translate(ticket)
            if found.errors:
                return self._fail(ticket, found.errors)
            try:
                run_id = self._plan(ticket)
            except ManifestRefused as refused:
                lines = [found.lines[error.line - 1] for error in refused.errors]
                return self._fail(
                    ticket,
                    [
                        LineError(line, error.custom_id, error.field, error.reason)
                        for line, error in zip(lines, refused.errors, strict=True)
                    ],
                )
        except (ApiError, InvalidRequest, UsageError) as error:
            return self._fail(ticket, [LineError(0, "", "input_file_id", error.message)])
        self.store.start(ticket, Started(run_id, int(time.time()), found.requests))
        self._launch(ticket, run_id)
        return False

    def _translate(self, ticket: Ticket) -> Translation:
        storage, team, out = self.store.storage, ticket.team, self.store.out(ticket)

        def load(reference: ImageRefParam) -> str:
            if reference.file_id is not None:
                data = read_file(storage, team, reference.file_id, self.policy.max_bytes)
                check_image(data, self.policy)
            elif (url := reference.image_url or "").startswith(("http:", "https:")):
                return url  # the worker that renders it fetches it
            else:
                data = load_input(url, self.policy)
            return store_input(out, data)

        find_file(storage, team, ticket.input_file_id)
        with (
            storage.reader(content_path(team, ticket.input_file_id)) as source,
            storage.writer(f"{ticket.folder}/manifest.jsonl") as manifest,
            storage.writer(f"{ticket.folder}/asked.jsonl") as asked,
        ):
            return translate(source, manifest, asked, ticket.endpoint, load)

    def _plan(self, ticket: Ticket) -> str:
        manifest = self.store.storage.name(f"{ticket.folder}/manifest.jsonl")
        job = Job(manifest, self.store.out(ticket).uri, self.table, PlanOptions())
        submission = identify(job)
        prepare(submission, lambda _: None)
        return submission.run_id

    def _launch(self, ticket: Ticket, run_id: str) -> None:
        with self.known.reached():
            launch(
                self._plan_of(ticket, run_id),
                self.store.out(ticket),
                self.known.runs,
                self.known.dispatcher,
            )

    def _settles(self, started: Started, waited: float) -> bool:
        """Whether workers may still be storing what a stopped run has rendered."""
        with self.known.reached():
            if self.known.runs.progress(started.run_id):
                self.known.runs.set_state(started.run_id, "cancelled")
            busy = self.known.runs.is_busy(started.run_id)
        return waited < SETTLE_SECONDS or (busy and waited < SETTLE_MOST_SECONDS)

    def _finish(self, ticket: Ticket, started: Started, status: BatchStatus) -> bool:
        """Write the output and error files of a run that has ended one way or another."""
        storage, out, now = self.store.storage, self.store.out(ticket), int(time.time())
        plan = self._plan_of(ticket, started.run_id)
        counts = RequestCounts(total=started.requests)
        files: dict[str, Any] = {}
        with ExitStack() as stack:
            asked = stack.enter_context(storage.reader(f"{ticket.folder}/asked.jsonl"))
            for done, line in results(
                out, plan, asked, now, f"batch_{status}", self._shows(ticket)
            ):
                kind = "output" if done else "error"
                if kind not in files:
                    # Ids of the batch's own: a second attempt replaces the first one's files.
                    files[kind] = stack.enter_context(
                        new_file(
                            storage,
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
        return True

    def _shows(self, ticket: Ticket) -> Mapping[str, Show]:
        def url(path: str) -> dict[str, str]:
            full = f"{ticket.folder}/out/{path}"
            presigned = self.store.storage.presigned_url(full, OUTPUT_URL_SECONDS)
            own = f"{ticket.base_url}files/{self.signer.query(full, OUTPUT_URL_SECONDS)}"
            return {"url": presigned or own}

        return {"url": url, "b64_json": b64_of(self.store.out(ticket))}

    def _fail(self, ticket: Ticket, errors: list[LineError]) -> bool:
        found = [
            BatchError(
                code="invalid_line" if error.line else "invalid_file",
                message=f"{error.field}: {error.reason}" if error.field else error.reason,
                param=error.field or None,
                line=error.line or None,
            )
            for error in errors
        ]
        self.store.end(ticket, "failed", errors=BatchErrors(data=found))
        return True

    def _plan_of(self, ticket: Ticket, run_id: str) -> Plan:
        plan = read_plan(self.store.out(ticket), run_id)
        if plan is None:
            raise FatalError(f"the plan of batch {ticket.id} is gone", "Submit the batch again.")
        return plan
