"""The images of a run: whole, small, side by side; and its inputs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response

from jobs.output import layout
from producer.api.page.gallery import Wanted
from producer.api.page.parameters import (
    RunId,
    UsedBoard,
    UsedGallery,
    UsedThumbnails,
    storage_of,
)
from producer.api.page.pictures import read_picture
from producer.api.page.visits import PictureRoute, Visiting
from producer.api.wire.errors import ApiError
from producer.api.wire.threads import in_thread

FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
STRIP_PICTURES = 10

Shard = Annotated[str, Path(pattern=r"^[0-9]{5,9}$")]
FileName = Annotated[str, Path(pattern=r"^[0-9a-f]{32}\.(jpg|png)$")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]

router = APIRouter(include_in_schema=False, route_class=PictureRoute)


@router.get("/runs/{run_id}/pictures/{shard}/{name}")
async def picture(
    run_id: RunId, shard: Shard, name: FileName, visitor: Visiting, board: UsedBoard
) -> Response:
    """An image of the run, as it is."""
    storage = await storage_of(board, run_id, visitor)
    data = await in_thread(read_picture, storage, f"images/{shard}/{name}")
    kind = "image/png" if name.endswith(".png") else "image/jpeg"
    return Response(data, media_type=kind, headers=FOREVER)


@router.get("/runs/{run_id}/thumbnails/{shard}/{name}")
async def thumbnail(
    run_id: RunId,
    shard: Shard,
    name: FileName,
    visitor: Visiting,
    board: UsedBoard,
    thumbnails: UsedThumbnails,
) -> Response:
    """The same, small."""
    storage = await storage_of(board, run_id, visitor)
    data = await thumbnails.get(storage, f"images/{shard}/{name}")
    return Response(data, media_type="image/webp", headers=FOREVER)


@router.get("/runs/{run_id}/inputs/{digest}")
async def input_(
    run_id: RunId, digest: Digest, visitor: Visiting, board: UsedBoard, thumbnails: UsedThumbnails
) -> Response:
    """An input image that lies with the run, small."""
    storage = await storage_of(board, run_id, visitor)
    data = await thumbnails.get(storage, layout.stored_input(digest))
    return Response(data, media_type="image/webp", headers=FOREVER)


@router.get("/runs/{run_id}/latest")
async def latest(
    run_id: RunId,
    visitor: Visiting,
    board: UsedBoard,
    gallery: UsedGallery,
    thumbnails: UsedThumbnails,
) -> Response:
    """The latest pictures of a run, side by side. Whoever links it names how far the run is."""
    storage = await storage_of(board, run_id, visitor)

    def read() -> list[str]:
        album = gallery.open(storage, run_id)
        found = album.before(album.plan.requests, Wanted(), STRIP_PICTURES)
        return [card.file_name for card in found.cards]

    paths = await gallery.read(read)
    if not paths:
        raise ApiError(404, "not_found", "there are no pictures yet")
    data = await thumbnails.strip(storage, paths)
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(data, media_type="image/webp", headers=headers)
