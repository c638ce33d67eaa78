"""What is known of batches, in storage. What a batch is follows from it:

batches/<team>/<batch id>/ticket.json    what was asked for; never changes
                          cancel.json    since when somebody wants it to end
                          manifest.jsonl, asked.jsonl, started.json    it was planned: its run
                          stopped.json   since when its run is not to go on
                          out/           the run's output, a dataset like any other
                          final.json     the batch as it ended; never changes
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, TypeAdapter

from jobs.errors import InvalidRequest
from jobs.output.storage import Storage, open_storage
from jobs.teams import Priority
from producer.api.files.shelf import check_id
from producer.api.openai.batch.lines import Endpoint

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip


class BatchError(BaseModel):
    """Why a batch failed. `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """Why a batch failed, as OpenAI lists it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(BaseModel):
    """A batch as OpenAI's clients know it. Times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What was asked for.

    output_seconds: until the output files expire; None if they never do. priority: of its run.
    """

    id: str
    team: str
    input_file_id: str
    endpoint: Endpoint
    metadata: dict[str, str] | None
    created_at: int
    expires_at: int
    output_seconds: int | None = None
    priority: Priority = "normal"

    @property
    def folder(self) -> str:
        """Where all of it lies below the store."""
        return f"batches/{self.team}/{self.id}"


@dataclass(frozen=True, slots=True)
class Started:
    """The run of a batch, since when it goes, and the batch's requests.

    refused: those among them whose bodies are wrong.
    """

    run_id: str
    at: int
    requests: int
    refused: int = 0


_TICKET = TypeAdapter(Ticket)
_STARTED = TypeAdapter(Started)


@dataclass(frozen=True)
class BatchStore:
    """A deployment's batches. Raises TransientError or FatalError when the storage is away."""

    storage: Storage

    def add(self, ticket: Ticket) -> None:
        self.storage.write(f"{ticket.folder}/ticket.json", orjson.dumps(ticket))

    def find(self, team: str, batch_id: str) -> Ticket | None:
        """A team's ticket; None if there is none."""
        try:
            path = f"batches/{team}/{check_id(batch_id)}/ticket.json"
            return _TICKET.validate_json(self.storage.read(path))
        except FileNotFoundError:
            return None

    def get(self, team: str, batch_id: str) -> Ticket:
        """A team's ticket. Raises InvalidRequest, code not_found, if there is none."""
        if ticket := self.find(team, batch_id):
            return ticket
        raise InvalidRequest("", f"there is no batch {batch_id!r}", "not_found")

    def ids(self, team: str) -> list[str]:
        """The ids of a team's batches."""
        return self.storage.list(f"batches/{team}")

    def unfinished(self) -> list[tuple[str, str]]:
        """(team, id) of every batch that has not ended."""
        return [
            (team, batch_id)
            for team in self.storage.list("batches")
            for batch_id in self.ids(team)
            if not self.storage.exists(f"batches/{team}/{batch_id}/final.json")
        ]

    def start(self, ticket: Ticket, started: Started) -> None:
        self.storage.write(f"{ticket.folder}/started.json", orjson.dumps(started))

    def started(self, ticket: Ticket) -> Started | None:
        """The batch's run; None if it was not planned yet."""
        data = self._read(ticket, "started.json")
        return None if data is None else _STARTED.validate_json(data)

    def cancel(self, ticket: Ticket) -> None:
        """Note that the batch is to end; the first time counts."""
        if self.cancelled_at(ticket) is None:
            self.storage.write(f"{ticket.folder}/cancel.json", b"%d" % time.time())

    def cancelled_at(self, ticket: Ticket) -> int | None:
        data = self._read(ticket, "cancel.json")
        return None if data is None else int(data)

    def stop(self, ticket: Ticket) -> None:
        """Note that the batch's run is not to go on."""
        self.storage.write(f"{ticket.folder}/stopped.json", b"%d" % time.time())

    def stopped_at(self, ticket: Ticket) -> int | None:
        data = self._read(ticket, "stopped.json")
        return None if data is None else int(data)

    def end(self, ticket: Ticket, status: BatchStatus, **fields: Any) -> None:
        """Note how the batch ended, unless that is known. `fields` are Batch's."""
        if self.final(ticket):
            return
        fields[f"{status}_at"] = int(time.time())
        if status == "cancelled":
            fields["cancelling_at"] = self.cancelled_at(ticket)
        final = face(ticket, status, **fields)
        self.storage.write(f"{ticket.folder}/final.json", final.model_dump_json().encode())

    def final(self, ticket: Ticket) -> Batch | None:
        """The batch as it ended; None if it has not."""
        data = self._read(ticket, "final.json")
        return None if data is None else Batch.model_validate_json(data)

    def out(self, ticket: Ticket) -> Storage:
        """The output location of the batch's run."""
        return open_storage(self.storage.name(f"{ticket.folder}/out"))

    def _read(self, ticket: Ticket, name: str) -> bytes | None:
        try:
            return self.storage.read(f"{ticket.folder}/{name}")
        except FileNotFoundError:
            return None


def face(ticket: Ticket, status: BatchStatus, **fields: Any) -> Batch:
    """The batch of a ticket."""
    return Batch(
        id=ticket.id,
        endpoint=ticket.endpoint,
        input_file_id=ticket.input_file_id,
        completion_window="24h",
        created_at=ticket.created_at,
        expires_at=ticket.expires_at,
        metadata=ticket.metadata,
        status=status,
        **fields,
    )
