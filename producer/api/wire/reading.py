"""Reads bodies strictly: JSON without surprises, and forms whose files are spooled to disk."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass
from email.message import Message as Header
from typing import Any, Generic, Self, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from jobs.errors import resembling
from jobs.requests import MAX_INPUTS
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import part_of
from producer.api.wire.threads import in_thread
from producer.planning.strict_json import parse_json

LARGE_BYTES = 64 * 2**10  # from here on JSON is read beside the event loop
BODY_SECONDS = 300.0  # until the last byte of a body is there
FORM = "multipart/form-data"
FORM_TEXT_BYTES = 256 * 2**10
EXACT = 2**53  # up to here a float is the integer that was written

M = TypeVar("M", bound=BaseModel)
M_co = TypeVar("M_co", bound=BaseModel, covariant=True)
J = TypeVar("J", bound=BaseModel)
F = TypeVar("F", bound=BaseModel)


class Given(BaseModel):
    """A body of ours: strict, without unknown fields, and null means "not given".

    20.0 is an integer, as JSON knows no other kind of number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_values(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {
            k: int(v) if isinstance(v, float) and v.is_integer() and abs(v) <= EXACT else v
            for k, v in data.items()
            if v is not None or k not in cls.model_fields
        }

    @model_validator(mode="wrap")
    @classmethod
    def _name_near(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Unknown fields are told which one they are like."""
        try:
            return read(data)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if not any(map(_is_unknown, errors)):
                raise
            told = [_told(one, cls.model_fields) for one in errors]
            raise ValidationError.from_exception_data(error.title, told) from error


def _is_unknown(error: ErrorDetails) -> bool:
    return error["type"] == "extra_forbidden" and len(error["loc"]) == 1


def _told(error: ErrorDetails, known: Iterable[str]) -> InitErrorDetails:
    """The same error; of an unknown field, with the known one that it is like."""
    said = error["msg"]
    if _is_unknown(error):
        said = f"unknown field{resembling(str(error['loc'][0]), known)}"
    # No template: values that it quotes may have braces.
    reason = PydanticCustomError(error["type"], "{said}", {"said": said, **error.get("ctx", {})})
    return InitErrorDetails(type=reason, loc=error["loc"], input=error["input"])


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bytes that the body of a request may have, and that of one which uploads a file."""

    body_bytes: int
    file_bytes: int


class StrictRequest(Request):
    """A request whose JSON is read by `parse_json` and whose forms must be whole."""

    async def json(self) -> Any:
        """The body. Raises json.JSONDecodeError."""
        raw = await self.body()
        return await in_thread(parse_json, raw) if len(raw) > LARGE_BYTES else parse_json(raw)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body. Raises ApiError 400 at the end of a form that lacks its last boundary."""
        boundary = Header()
        boundary["content-type"] = self.headers.get("content-type", "")
        last = str(boundary.get_param("boundary", "")).encode("latin-1", "replace") + b"--"
        tail = b""
        async for piece in super().stream():
            tail = (tail + piece)[-len(last) - 8 :] if piece else tail
            yield piece
        # The parser would drop what was cut off without a word.
        if boundary.get_content_type() == FORM and last not in tail:
            raise ApiError(400, "truncated_form", "the form ends before its last boundary")


class StrictRoute(APIRoute):
    """A route whose bodies are read strictly. takes_files: its bodies hold an upload."""

    takes_files = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a StrictRequest."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            limits = part_of(request, BodyLimits)
            most = limits.file_bytes if self.takes_files else limits.body_bytes
            if int(request.headers.get("content-length", 0)) > most:
                raise _too_large(most)
            if self.body_field and not _is_json(request):
                raise ApiError(415, "unsupported_media_type", "send Content-Type: application/json")
            receive = _in_bounds(_in_time(request.receive), most)
            return await handle(StrictRequest(request.scope, receive))

        return strict


def _is_json(request: Request) -> bool:
    """Whether the body is said to be JSON; what has no body may be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind and "transfer-encoding" not in request.headers:
        return request.headers.get("content-length", "0") == "0"
    return kind == "application/json" or kind.endswith("+json")


def _too_large(most: int) -> HTTPException:
    # The one kind of error that FastAPI lets through while it reads a body.
    return HTTPException(413, f"the body has more than {most} bytes")


def _in_bounds(receive: Receive, most: int) -> Receive:
    """The same channel. A body of more bytes raises HTTPException 413."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise _too_large(most)
        return message

    return bounded


def _in_time(receive: Receive) -> Receive:
    """The same channel. The whole body must come within BODY_SECONDS, else HTTPException 408."""
    deadline, whole = time.monotonic() + BODY_SECONDS, False

    async def bounded() -> Message:
        nonlocal whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            reason = f"the body did not come within {BODY_SECONDS:.0f} seconds"
            raise HTTPException(408, reason) from error
        whole = not message.get("more_body", False)
        return message

    return bounded


Source = str | bytes  # an input image: as a user wrote it, or the file itself


@dataclass(frozen=True)
class Form(Generic[M_co]):
    """A body that came as JSON or as a form. `files` are the form's, by field, in order."""

    body: M_co
    files: dict[str, list[bytes]]


async def read_form(
    request: Request,
    as_json: type[J],
    as_form: type[F],
    file_fields: tuple[str, ...],
    single: tuple[str, ...] = (),
) -> Form[J | F]:
    """Read application/json into one model or multipart/form-data into another.

    file_fields: which form fields are files, of which those in `single` may be there once;
    "name[]" is taken for "name".

    Raises:
        RequestValidationError, ApiError, HTTPException: the body is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return Form(await _read_json(request, as_json), {})
    if kind != FORM:
        raise ApiError(
            415, "unsupported_media_type", "send application/json or multipart/form-data"
        )
    texts: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(
        max_files=MAX_INPUTS + 1, max_fields=64, max_part_size=FORM_TEXT_BYTES
    ) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                if name not in file_fields:
                    raise ApiError(422, "invalid_request", f"{name}: is no file", name)
                if name in single and name in files:
                    raise ApiError(422, "invalid_request", f"{name}: is given twice", name)
                files.setdefault(name, []).append(await value.read())
            elif key in texts:
                raise ApiError(422, "invalid_request", f"{name}: is given twice", name)
            else:
                texts[key] = value
    try:
        return Form(as_form.model_validate_strings(texts, strict=False), files)
    except ValidationError as error:
        raise refused(error) from error


async def _read_json(request: Request, model: type[M]) -> M:
    try:
        return model.model_validate(await request.json())
    except json.JSONDecodeError as error:
        detail = {"type": "json_invalid", "loc": ("body",), "msg": "", "ctx": {"error": error.msg}}
        raise RequestValidationError([detail]) from error
    except ValidationError as error:
        raise refused(error) from error


def refused(error: ValidationError) -> RequestValidationError:
    """The error that FastAPI would have raised."""
    return RequestValidationError(
        [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_url=False)]
    )
