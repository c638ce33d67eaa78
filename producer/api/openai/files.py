"""The file endpoints under /openai/v1."""

from __future__ import annotations

import shutil
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from producer.api.admission import Admitted, GuardedRoute
from producer.api.files.downloads import UsedDownloads
from producer.api.files.shelf import OpenAIFile, Purpose, Shelf
from producer.api.openai.batch.lines import with_urls
from producer.api.wire.errors import ApiError, OpenAIErrorBody, declared
from producer.api.wire.parts import provided
from producer.api.wire.reading import Given, refused
from producer.api.wire.threads import in_thread

OUTPUT_URL_SECONDS = 7 * 24 * 3600  # the most that S3 allows


class FileRoute(GuardedRoute):
    """A route whose bodies hold a file."""

    takes_files = True


router = APIRouter(
    prefix="/openai/v1/files",
    tags=["Files"],
    route_class=FileRoute,
    responses=declared(OpenAIErrorBody),
)


UsedShelf = Annotated[Shelf, provided(Shelf)]


class ExpiresAfter(Given):
    """When a file ends, counted from its making."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class CreateFileRequest(Given):
    """A form with one file, `file`."""

    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    expires_after: ExpiresAfter | None = None


class ListFilesResponse(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[OpenAIFile]
    first_id: str
    last_id: str
    has_more: bool


class DeleteFileResponse(BaseModel):
    """A file that was."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _form() -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file", "purpose"],
                        "properties": {
                            "file": {"type": "string", "format": "binary"},
                            "purpose": CreateFileRequest.model_json_schema()["properties"][
                                "purpose"
                            ],
                            "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                            "expires_after[seconds]": {
                                "type": "integer", "minimum": 3600, "maximum": 2592000
                            },
                        },
                        "dependentRequired": {
                            "expires_after[anchor]": ["expires_after[seconds]"],
                            "expires_after[seconds]": ["expires_after[anchor]"],
                        },
                        "additionalProperties": False,
                    }
                }
            },
        }
    }  # fmt: skip


@router.post("", response_model_exclude_none=True, openapi_extra=_form())
async def create(shelf: UsedShelf, caller: Admitted, request: Request) -> OpenAIFile:
    """Upload a file."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", "send multipart/form-data")
    async with request.form(max_files=1, max_fields=8) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise ApiError(422, "invalid_request", "file: a file is required", "file")
        fields = _fields([(k, v) for k, v in form.multi_items() if isinstance(v, str)])
        expires = fields.expires_after

        def store() -> OpenAIFile:
            seconds = expires.seconds if expires else None
            name = upload.filename or "upload"
            with shelf.new(caller.team, name, fields.purpose, seconds) as (file, content):
                shutil.copyfileobj(upload.file, content)
            return file

        return await in_thread(store)


def _fields(texts: list[tuple[str, str]]) -> CreateFileRequest:
    """Also OpenAI's way to put an object into a form: "expires_after[seconds]"."""
    found: dict[str, Any] = {}
    for key, value in texts:
        name, bracket, inner = key.rstrip("]").partition("[")
        place = found.setdefault(name, {}) if bracket else found
        if not isinstance(place, dict) or (inner or name) in place:
            raise ApiError(422, "invalid_request", f"{name}: is given twice", name)
        place[inner or name] = value
    try:
        return CreateFileRequest.model_validate_strings(found, strict=False)
    except ValidationError as error:
        raise refused(error) from error


@router.get("", response_model_exclude_none=True)
async def list_all(
    shelf: UsedShelf,
    caller: Admitted,
    purpose: Purpose | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> ListFilesResponse:
    """The team's files."""

    def read() -> list[OpenAIFile]:
        files = shelf.list(caller.team, after, order == "desc")
        wanted = (file for file in files if purpose in (None, file.purpose))
        return list(islice(wanted, limit + 1))

    found = await in_thread(read)
    files = found[:limit]
    first, last = (files[0].id, files[-1].id) if files else ("", "")
    return ListFilesResponse(data=files, first_id=first, last_id=last, has_more=len(found) > limit)


@router.get("/{file_id}", response_model_exclude_none=True)
async def get(file_id: str, shelf: UsedShelf, caller: Admitted) -> OpenAIFile:
    """One file."""
    return await in_thread(shelf.get, caller.team, file_id)


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
async def content(
    file_id: str, shelf: UsedShelf, downloads: UsedDownloads, caller: Admitted, request: Request
) -> StreamingResponse:
    """What is in a file; the URLs in a batch's output are made now."""
    file = await in_thread(shelf.get, caller.team, file_id)
    path, base = shelf.content_path(caller.team, file.id), str(request.base_url)
    pieces = downloads.stream(path)
    if file.purpose == "batch_output":
        pieces = with_urls(
            downloads.lines(path),
            f"batches/{caller.team}/",
            lambda image: downloads.url(image, base, OUTPUT_URL_SECONDS),
        )
    return StreamingResponse(pieces, media_type="application/octet-stream")


@router.delete("/{file_id}")
async def delete(file_id: str, shelf: UsedShelf, caller: Admitted) -> DeleteFileResponse:
    """Remove a file."""
    await in_thread(shelf.delete, caller.team, file_id)
    return DeleteFileResponse(id=file_id)
