"""Whether the process lives, and whether it can do its work."""

from __future__ import annotations

import logging
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from jobs.errors import ImagemillError
from producer.api.calls import UsedCalls
from producer.api.wire.errors import RETRY_SECONDS, ApiError, ErrorBody, declared
from producer.api.wire.threads import in_thread

log = logging.getLogger(__name__)

router = APIRouter(tags=["Health"])


class Health(BaseModel):
    """All is well; otherwise the answer is an error."""

    status: Literal["ok"] = "ok"


@router.get("/healthz")
async def alive() -> Health:
    """The process answers."""
    return Health()


@router.get("/readyz", responses=declared(ErrorBody, 400, 401, 403, 404, 413, 415, 422, 429, 500))
async def ready(calls: UsedCalls) -> Health:
    """Broker, storage and a worker with the default model are there, and it is not stopping."""
    if calls.draining:
        raise ApiError(503, "stopping", "this server is stopping", "", RETRY_SECONDS)
    await calls.queue.ping()
    try:
        await in_thread(calls.storage.list, "")
    except ImagemillError as error:
        log.warning("The store: %s", error)
        message = "the store does not answer; the facade's log says why"
        raise ApiError(503, "no_storage", message, "", RETRY_SECONDS) from error
    if awaited := await calls.roster.awaited(calls.table.route(None).model):
        raise ApiError(503, "no_worker", awaited, "", RETRY_SECONDS)
    return Health()
