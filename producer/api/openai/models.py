"""The models, under /openai/v1 and, for clients that look there first, under /v1."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from jobs.models.table import NULL_REPO
from producer.api.admission import Admitted, GuardedRoute
from producer.api.calls import Calls, UsedCalls
from producer.api.wire.errors import ApiError, ErrorBody, OpenAIErrorBody, declared

OPENAI = declared(OpenAIErrorBody)
PLAIN = declared(ErrorBody)

router = APIRouter(tags=["Models"], route_class=GuardedRoute)


class ModelObject(BaseModel):
    """A model, one with an adapter, or another name of either.

    served: whether a worker renders it now.
    """

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "imagemill"
    served: bool


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.get("/openai/v1/models", responses=OPENAI)
@router.get("/v1/models", responses=PLAIN)
async def list_models(calls: UsedCalls, _: Admitted) -> ModelList:
    """The models, those with an adapter, and their other names."""
    return ModelList(data=await _models(calls))


@router.get("/openai/v1/models/{model:path}", responses=OPENAI)
@router.get("/v1/models/{model:path}", responses=PLAIN)
async def get_model(model: str, calls: UsedCalls, _: Admitted) -> ModelObject:
    """One model."""
    for one in await _models(calls):
        if one.id == model:
            return one
    raise ApiError(404, "model_not_found", f"there is no model {model[:256]!r}", "model")


async def _models(calls: Calls) -> list[ModelObject]:
    table = calls.table
    served = {name: await calls.roster.workers(name) > 0 for name in table.models}
    # Models that draw nothing are for tests: who does not serve them need not know.
    shown = [name for name in served if served[name] or table.models[name].repo != NULL_REPO]
    adapters = [f"{name}:{adapter}" for name in shown for adapter in table.models[name].adapters]
    routes = {name: table.route(name).model for name in [*shown, *adapters, *table.aliases]}
    return [
        ModelObject(id=name, served=served[model])
        for name, model in routes.items()
        if model in shown
    ]
