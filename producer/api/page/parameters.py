"""What the page's endpoints are given: parts of the facade, and checked pieces of addresses."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Path, Query, Request

from jobs.ids import RUN_ID
from jobs.output.storage import Storage, open_storage
from producer.api.page.board import Board
from producer.api.page.gallery import Gallery
from producer.api.page.pictures import Thumbnails
from producer.api.page.ranking import Rankings
from producer.api.page.visits import Visitor
from producer.api.roster import Roster
from producer.api.wire.errors import ApiError
from producer.api.wire.parts import provided

SMALL_BYTES = 4096  # of a form that has only short texts

UsedBoard = Annotated[Board, provided(Board)]
UsedGallery = Annotated[Gallery, provided(Gallery)]
UsedRankings = Annotated[Rankings, provided(Rankings)]
UsedThumbnails = Annotated[Thumbnails, provided(Thumbnails)]
UsedRoster = Annotated[Roster, provided(Roster)]

RunId = Annotated[str, Path(pattern=f"^{RUN_ID.pattern}$")]
RowNumber = Annotated[int, Path(ge=0, le=2**53)]
Cursor = Annotated[int | None, Query(ge=0, le=2**53)]


async def storage_of(board: Board, run_id: str, visitor: Visitor) -> Storage:
    """Where a run's output lies: the broker says it, never a caller. Raises: as Board.run."""
    standing = await board.run(run_id, visitor)
    return open_storage(standing.progress.out)


async def small_form(request: Request) -> dict[str, str]:
    """The texts of a form, each name's first.

    Raises:
        ApiError: 413 as soon as it has too much: whoever sends it may not be admitted yet.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > SMALL_BYTES:
            raise ApiError(413, "body_too_large", f"more than {SMALL_BYTES} bytes")
    fields = parse_qs(body.decode("latin-1"))
    return {name: values[0] for name, values in fields.items()}
