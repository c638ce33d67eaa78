"""Stored files behind signed URLs: the facade's own on disks, presigned ones on object stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from jobs.output.storage import Storage
from producer.api.access.signing import URL_SECONDS
from producer.api.facade import Facade, Used, in_thread
from producer.api.wire.errors import ApiError, ErrorBody, declared

MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
PIECE_BYTES = 1 << 20

router = APIRouter(responses=declared(ErrorBody, 400, 401, 413, 415, 429, 500, 504))


@router.get("/files/{path:path}", response_class=Response, tags=["Files"])
async def download(
    path: str,
    facade: Used,
    expires: Annotated[int, Query(ge=0, le=2**40)],
    signature: Annotated[str, Query(max_length=128)],
) -> Response:
    """One stored file. The URL itself is the permission; it was signed for whoever may see it."""
    facade.signer.check(path, expires, signature)
    try:
        data = await in_thread(facade.storage.read, path)
    except FileNotFoundError as error:
        raise ApiError(404, "not_found", "this file does not exist any more") from error
    kind = MEDIA_TYPES.get(path.rpartition(".")[2], "application/octet-stream")
    headers = {"Cache-Control": "private", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=kind, headers=headers)


async def url_of(facade: Facade, path: str, base_url: str, seconds: int = URL_SECONDS) -> str:
    """A URL that opens a stored file for so many seconds."""
    presigned = await in_thread(facade.storage.presigned_url, path, seconds)
    return presigned or f"{base_url}files/{facade.signer.query(path, seconds)}"


def stream(storage: Storage, path: str) -> StreamingResponse:
    """A large stored file, piece by piece."""

    def pieces() -> Iterator[bytes]:
        with storage.reader(path) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    return StreamingResponse(pieces(), media_type="application/octet-stream")
