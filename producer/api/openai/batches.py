"""The batch endpoints under /openai/v1."""

from __future__ import annotations

import time
from itertools import islice
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from jobs.errors import InvalidRequest
from jobs.teams import PRIORITIES, Priority
from producer.api.admission import Admitted, Caller, GuardedRoute
from producer.api.files.shelf import follow, new_id
from producer.api.openai.batch.lines import Endpoint
from producer.api.openai.batch.store import Batch, Ticket
from producer.api.openai.batch.tending import Batches
from producer.api.openai.files import ExpiresAfter, UsedShelf
from producer.api.wire.errors import ApiError, OpenAIErrorBody, declared
from producer.api.wire.parts import provided
from producer.api.wire.reading import Given
from producer.api.wire.threads import in_thread

WINDOW_SECONDS = 24 * 3600

router = APIRouter(
    prefix="/openai/v1/batches",
    tags=["Batch"],
    route_class=GuardedRoute,
    responses=declared(OpenAIErrorBody),
)


UsedBatches = Annotated[Batches, provided(Batches)]


class CreateBatchRequest(Given):
    """A batch to make of an uploaded file. OpenAI's has no `priority`."""

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None
    priority: Priority | None = None


class ListBatchesResponse(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


@router.post("", response_model_exclude_none=True)
async def create(
    body: CreateBatchRequest,
    batches: UsedBatches,
    shelf: UsedShelf,
    caller: Admitted,
) -> Batch:
    """Render the requests of an uploaded file."""
    file = await in_thread(shelf.get, caller.team, body.input_file_id)
    if file.purpose != "batch":
        raise InvalidRequest("input_file_id", "the file's purpose is not batch")
    now, expires = int(time.time()), body.output_expires_after
    ticket = Ticket(
        id=new_id("batch_"),
        team=caller.team,
        input_file_id=file.id,
        endpoint=body.endpoint,
        metadata=body.metadata,
        created_at=now,
        expires_at=now + WINDOW_SECONDS,
        output_seconds=expires.seconds if expires else None,
        priority=_priority(body, caller),
    )
    return await in_thread(batches.create, ticket)


def _priority(body: CreateBatchRequest, caller: Caller) -> Priority:
    """Raises ApiError 403 for one that the key may not ask for."""
    most = PRIORITIES.index(caller.priority)
    asked = body.priority or PRIORITIES[min(most, PRIORITIES.index("normal"))]
    if PRIORITIES.index(asked) > most:
        raise ApiError(
            403,
            "wrong_priority",
            f"this token's batches have the priority {caller.priority} at most",
            "priority",
        )
    return asked


@router.get("", response_model_exclude_none=True)
async def list_all(
    batches: UsedBatches,
    caller: Admitted,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListBatchesResponse:
    """The team's batches."""

    def read() -> tuple[list[Batch], bool]:
        ids = follow(batches.store.ids(caller.team), after, newest_first=True)
        found = list(islice(batches.listed(caller.team, ids), limit + 1))
        return found[:limit], len(found) > limit

    found, more = await in_thread(read)
    if not found:
        return ListBatchesResponse(data=[], has_more=False)
    return ListBatchesResponse(
        data=found, first_id=found[0].id, last_id=found[-1].id, has_more=more
    )


@router.get("/{batch_id}", response_model_exclude_none=True)
async def get(batch_id: str, batches: UsedBatches, caller: Admitted) -> Batch:
    """One batch."""
    return await in_thread(batches.get, caller.team, batch_id)


@router.post("/{batch_id}/cancel", response_model_exclude_none=True)
async def cancel(batch_id: str, batches: UsedBatches, caller: Admitted) -> Batch:
    """Stop a batch; what is rendered by then is in its output."""
    return await in_thread(batches.cancel, caller.team, batch_id)
