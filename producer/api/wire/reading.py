"""Reads bodies strictly: JSON without surprises, and forms whose files are spooled to disk."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from email.message import Message
from typing import Any, Generic, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from starlette.datastructures import UploadFile

from jobs.requests import MAX_INPUTS
from producer.api.wire.errors import ApiError

MAX_DEPTH = 32
FORM = "multipart/form-data"
FORM_TEXT_BYTES = 256 * 2**10

M = TypeVar("M", bound=BaseModel)
M_co = TypeVar("M_co", bound=BaseModel, covariant=True)
J = TypeVar("J", bound=BaseModel)
F = TypeVar("F", bound=BaseModel)


class Given(BaseModel):
    """A body of ours: strict, without unknown fields, and null means "not given"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None or k not in cls.model_fields}


def parse_json(raw: bytes) -> Any:
    """JSON without repeated keys, NaN, infinities or deep nesting.

    Raises:
        json.JSONDecodeError: says which of these it has, or that it is none.
    """
    try:
        content = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error
    except ValueError as error:  # broken UTF-8, a number of thousands of digits, a repeated key
        raise json.JSONDecodeError(str(error), "", 0) from error
    if _depth(content, MAX_DEPTH) > MAX_DEPTH:
        raise json.JSONDecodeError("nested too deeply", "", 0)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {again[:64]!r} appears twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _depth(content: Any, most: int) -> int:
    if most < 0 or not isinstance(content, dict | list):
        return 0
    inner = content.values() if isinstance(content, dict) else content
    return 1 + max((_depth(value, most - 1) for value in inner), default=0)


class StrictRequest(Request):
    """A request whose JSON is read by `parse_json` and whose forms must be whole."""

    async def json(self) -> Any:
        """The body. Raises json.JSONDecodeError."""
        return parse_json(await self.body())

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body. Raises ApiError 400 at the end of a form that lacks its last boundary."""
        boundary = Message()
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
    """A route whose bodies are read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a StrictRequest."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


Source = str | bytes  # an input image: as a user wrote it, or the file itself


@dataclass(frozen=True)
class Form(Generic[M_co]):
    """A body that came as JSON or as a form. `files` are the form's, by field, in order."""

    body: M_co
    files: dict[str, list[bytes]]


async def read_form(
    request: Request, as_json: type[J], as_form: type[F], file_fields: tuple[str, ...]
) -> Form[J | F]:
    """Read application/json into one model or multipart/form-data into another.

    file_fields: which form fields are files; "name[]" is taken for "name".

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
