"""What becomes of an error: its HTTP status, and its JSON in the dialect of the caller.

Everything but /openai answers {"message", "field", "code"}; /openai answers
{"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs.errors import ImagemillError, InvalidRequest, TransientError, plain

OPENAI = "/openai/"
FRIENDLI_PATHS = ("/v1/images/generations", "/v1/images/edits")  # OpenAI's have the same below it
OPENAI_FIELDS = ("n", "size", "quality", "output_format", "background", "user")  # only OpenAI's
OPENAI_HINT = f"; OpenAI's clients take …{OPENAI}v1 as their base URL"
RETRY_SECONDS = 5  # what a caller is told to wait for a broker or a worker that is away

log = logging.getLogger(__name__)


class ApiError(ImagemillError):
    """An answer that is not 2xx. `retry_after` is in seconds; None where a retry cannot help."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str = "",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field
        self.retry_after = retry_after


class ErrorBody(BaseModel):
    """An error. `field` names the culprit where there is one."""

    message: str
    field: str | None
    code: str


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(BaseModel):
    """The envelope of an error."""

    error: OpenAIError


STATUSES = {
    400: "The request cannot be read, or asks for what cannot be done",
    401: "A token is needed",
    403: "The token does not allow this",
    404: "There is no such thing",
    413: "The body or an image is too large",
    415: "Neither JSON nor a form",
    422: "A field is wrong",
    429: "Too many requests; Retry-After says when to come back",
    500: "The image could not be rendered",
    503: "The broker, the storage or the workers are away; Retry-After says when to come back",
    504: "The deadline passed; the work is cancelled",
}


def declared(
    body: type[BaseModel], *left_out: int
) -> dict[int | str, dict[str, str | type[BaseModel]]]:
    """The error answers of a router, for its schema."""
    return {
        status: {"model": body, "description": text}
        for status, text in STATUSES.items()
        if status not in left_out
    }


_STATUS_OF_CODE = {
    "bad_signature": 403,
    "batch_ended": 400,
    "input_too_large": 413,
    "model_not_found": 404,
    "not_found": 404,
    "unsupported": 400,
}


_OPENAI_NAMES = {"width": "size", "height": "size", "mask_image": "mask"}


@dataclass(frozen=True, slots=True)
class Culprit:
    """What is wrong. place: within the field, where it has parts: image[1].image."""

    field: str
    place: str
    reason: str


def handle_errors(app: FastAPI) -> None:
    """Answer every exception that an endpoint raises."""
    for kind in (ImagemillError, RequestValidationError, HTTPException, redis.RedisError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(TimeoutError, answer)
    app.add_exception_handler(Exception, answer)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """What a caller of the API gets for an exception."""
    path = request.url.path
    problem = as_answer(error, path.startswith(OPENAI))
    if isinstance(error, HTTPException) and error.status_code == 404:
        problem.message = f"there is nothing at {path[:256]}; /docs lists what there is"
        problem.message += "" if path.startswith(OPENAI) else OPENAI_HINT
    elif path in FRIENDLI_PATHS and problem.field in OPENAI_FIELDS:
        problem.message += OPENAI_HINT
    headers = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status == 405:
        headers["Allow"] = ", ".join(_methods(request))
    if problem.status >= 500:
        log.warning("%s %s: %s", request.method, path, problem.message)
    return JSONResponse(error_json(problem, path.startswith(OPENAI)), problem.status, headers)


def _methods(request: Request) -> list[str]:
    """What the path of a request may be asked with: Starlette names one route's methods only."""
    taken = [
        method
        for method in ("GET", "POST", "DELETE")
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in request.app.routes
        )
    ]
    return [*taken[:1], "HEAD", *taken[1:]] if "GET" in taken else taken


def error_json(problem: ApiError, openai: bool) -> dict[str, object]:
    """The body of an error."""
    if not openai:
        return ErrorBody(
            message=problem.message, field=problem.field or None, code=problem.code
        ).model_dump()
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    inner = OpenAIError(
        message=problem.message, type=kind, param=problem.field or None, code=problem.code
    )
    return OpenAIErrorBody(error=inner).model_dump()


def as_answer(error: Exception, openai: bool = True) -> ApiError:
    """What a caller is told of an exception; the rest goes to the log."""
    told = _classify(error)
    if not openai:
        return told
    # OpenAI has no 422, and its callers wrote a size where we have two sides.
    status = 400 if told.status == 422 else told.status
    field = _OPENAI_NAMES.get(told.field, told.field)
    message = told.message.replace("mask_image", "mask")
    return ApiError(status, told.code, message, field, told.retry_after)


def _classify(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            status = _STATUS_OF_CODE.get(error.code, 422)
            return ApiError(status, error.code, error.message, error.field)
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = {
                404: "not_found", 405: "method_not_allowed", 408: "too_slow", 413: "body_too_large"
            }  # fmt: skip
            return ApiError(
                error.status_code, code.get(error.status_code, "bad_request"), str(error.detail)
            )
        case TimeoutError():
            return ApiError(504, "deadline_passed", "the deadline passed; the work is cancelled")
        case TransientError() | redis.RedisError():
            log.warning("%s", error)
            return ApiError(
                503, "unavailable", "the broker or the storage is away", "", RETRY_SECONDS
            )
        case ImagemillError():
            log.error("%s", error)
            return ApiError(
                503, "unavailable", "the storage or the model does not work; see the log"
            )
    log.error("Unexpected error", exc_info=error)
    return ApiError(500, "internal_error", "an unexpected error; see the log")


def _invalid(error: RequestValidationError) -> ApiError:
    culprit = culprit_of(error)
    if culprit.reason.startswith("not JSON"):
        return ApiError(422, "invalid_json", culprit.reason)
    message = f"{culprit.place}: {culprit.reason}" if culprit.place else culprit.reason
    return ApiError(422, "invalid_request", message, culprit.field)


# Errors that say only of what kind a value must be.
_KINDS = {"model_type": "an object", "model_attributes_type": "an object", "list_type": "a list"}


def culprit_of(error: RequestValidationError) -> Culprit:
    """The first field that is wrong, and why."""
    errors = error.errors()
    errors = _misspelt(errors) or errors
    errors = [one for one in errors if one["loc"][:2] == errors[0]["loc"][:2]]
    # Each alternative of a union has its errors; the one that was meant got furthest.
    furthest = max(map(_depth, errors))
    meant = [one for one in errors if _depth(one) == furthest]
    kinds = dict.fromkeys(_KINDS.get(one["type"], "") for one in meant)
    reason = _reason(meant[0]) if "" in kinds else f"must be {' or '.join(kinds)}"
    if len(meant[0]["loc"]) < 2 or meant[0]["type"] == "json_invalid":
        return Culprit("", "", reason if "" in kinds else f"the body {reason}")
    field, *inner = meant[0]["loc"][1:]
    # Names of a union's alternatives stand among the steps: classes, and list[…].
    steps = [f"[{one}]" if isinstance(one, int) else f".{one}" for one in inner if _is_step(one)]
    return Culprit(str(field), f"{field}{''.join(steps)}", reason)


def _misspelt(errors: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Unknown fields that are like the required one which is missing first."""
    first = errors[0]
    said = f"did you mean {str(first['loc'][-1])!r}"
    unknown = [one for one in errors if one["type"] == "extra_forbidden" and said in one["msg"]]
    return unknown if first["type"] == "missing" else []


def _depth(error: dict[str, Any]) -> tuple[int, bool]:
    return len(error["loc"]), error["type"] not in _KINDS


def _is_step(step: str | int) -> bool:
    return isinstance(step, int) or (step.islower() and "[" not in step)


def _reason(error: dict[str, Any]) -> str:
    message = plain(error["msg"])
    match error["type"]:
        case "json_invalid":
            return f"not JSON: {error.get('ctx', {}).get('error', message)}"
        case "missing":
            return "is required" if len(error["loc"]) > 1 else "a body is required"
        case "extra_forbidden":
            return message if message.startswith("unknown field") else "unknown field"
        case _:
            return f"{message[:1].lower()}{message[1:]}"
