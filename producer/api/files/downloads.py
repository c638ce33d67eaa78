"""Stored files behind signed URLs: the facade's own on disks, presigned ones on object stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from jobs.formats import FORMATS
from jobs.output.storage import Storage
from producer.api.access.signing import URL_SECONDS, Signer
from producer.api.wire.errors import ApiError, ErrorBody, declared
from producer.api.wire.parts import provided
from producer.api.wire.threads import in_thread

MEDIA_TYPES = {one.extension: one.media_type for one in FORMATS.values()} | {"webp": "image/webp"}
PIECE_BYTES = 1 << 20

router = APIRouter(responses=declared(ErrorBody, 400, 401, 413, 415, 429, 500, 504))


@dataclass(frozen=True)
class Downloads:
    """URLs that open one stored file for a while.

    public_url: of the facade, without a final slash; as each request names it when not given.
    """

    storage: Storage
    signer: Signer
    public_url: str | None = None

    def url(self, path: str, base_url: str, seconds: int = URL_SECONDS) -> str:
        """A URL that opens a stored file for so many seconds. Blocks.

        base_url: of the facade, as the request that asks for it names it.
        """
        presigned = self.storage.presigned_url(path, seconds)
        base = self.public_url or base_url.rstrip("/")
        return presigned or f"{base}/files/{self.signer.query(path, seconds)}"

    def stream(self, path: str) -> Iterator[bytes]:
        """A large stored file, piece by piece."""
        with self.storage.reader(path) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def lines(self, path: str) -> Iterator[bytes]:
        """A stored file of lines, line by line."""
        with self.storage.reader(path) as file:
            yield from file


UsedDownloads = Annotated[Downloads, provided(Downloads)]


@router.get("/files/{path:path}", response_class=Response, tags=["Files"])
async def download(
    path: str,
    downloads: UsedDownloads,
    expires: Annotated[int, Query(ge=0, le=2**40)],
    signature: Annotated[str, Query(max_length=128)],
) -> Response:
    """One stored file. The URL itself is the permission; it was signed for whoever may see it."""
    downloads.signer.check(path, expires, signature)
    kind = MEDIA_TYPES.get(path.rpartition(".")[2], "application/octet-stream")
    headers = {"Cache-Control": "private", "X-Content-Type-Options": "nosniff"}
    try:
        if (file := downloads.storage.local_file(path)) is not None:
            status = await in_thread(os.stat, file)
            return FileResponse(file, 200, headers, kind, stat_result=status)
        data = await in_thread(downloads.storage.read, path)
    except FileNotFoundError as error:
        raise ApiError(404, "not_found", "this file does not exist any more") from error
    return Response(data, media_type=kind, headers=headers)
