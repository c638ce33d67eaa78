"""Pictures of a run, small ones made when somebody looks and kept for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import anyio
from cachetools import LRUCache
from PIL import Image, ImageOps

from jobs.errors import InvalidRequest
from jobs.output.storage import Storage
from producer.api.wire.threads import in_thread
from producer.look.small import encode, join, shrink

THUMBNAIL_SIDE = 192  # pixels of the longer side
STRIP_SIDE, STRIP_GAP = 144, 8
KEPT_BYTES = 32 * 2**20  # a hundred pages of a gallery
READERS = 16  # images that are read at a time: a store far away answers many as fast as one
MAKERS = 4  # thumbnails that are made at a time; decoding one takes up to 350 MB


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures, as WebP."""

    _kept: LRUCache[tuple[str, str], bytes] = field(
        default_factory=lambda: LRUCache(KEPT_BYTES, getsizeof=len)
    )
    _making: dict[tuple[str, str], asyncio.Task[bytes]] = field(default_factory=dict)
    _readers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(READERS))
    _makers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAKERS))

    async def get(self, storage: Storage, path: str) -> bytes:
        """The thumbnail of an image.

        Raises:
            InvalidRequest: the file is not there (code not_found) or no image.
        """
        kept = self._kept.get((storage.uri, path))
        return await asyncio.shield(self._begin(storage, path)) if kept is None else kept

    def prepare(self, storage: Storage, paths: Iterable[str]) -> None:
        """Begin with thumbnails that somebody will ask for soon."""
        for path in paths:
            if (storage.uri, path) not in self._kept:
                self._begin(storage, path)

    async def strip(self, storage: Storage, paths: Sequence[str]) -> bytes:
        """Some images side by side, cut to squares. Raises: as get; paths must not be empty."""
        key = (storage.uri, "\n".join(paths))
        kept = self._kept.get(key)
        if kept is None:
            small = await asyncio.gather(*[self.get(storage, path) for path in paths])
            kept = self._kept[key] = await in_thread(_join, small, threads=self._makers)
        return kept

    def _begin(self, storage: Storage, path: str) -> asyncio.Task[bytes]:
        """The task that makes a thumbnail; of several who ask for it all get the same."""
        key = (storage.uri, path)
        if key not in self._making:
            task = self._making[key] = asyncio.create_task(self._make(storage, path))
            task.add_done_callback(lambda task: self._end(key, task))
        return self._making[key]

    def _end(self, key: tuple[str, str], task: asyncio.Task[bytes]) -> None:
        del self._making[key]
        if not task.cancelled() and not task.exception():
            self._kept[key] = task.result()

    async def _make(self, storage: Storage, path: str) -> bytes:
        data = await in_thread(read_picture, storage, path, threads=self._readers)
        return await in_thread(_shrink, data, threads=self._makers)


def _shrink(data: bytes) -> bytes:
    return encode(shrink(data, THUMBNAIL_SIDE))


def _join(thumbnails: Sequence[bytes]) -> bytes:
    """WebP files of our own, as one."""
    size = (STRIP_SIDE, STRIP_SIDE)
    squares = [ImageOps.fit(Image.open(BytesIO(data)), size) for data in thumbnails]
    return encode(join(squares, STRIP_SIDE, len(squares), gap=STRIP_GAP))


def read_picture(storage: Storage, path: str) -> bytes:
    """An image's file. Raises InvalidRequest, code not_found, if it is not there."""
    try:
        return storage.read(path)
    except FileNotFoundError as error:
        raise InvalidRequest("", "this picture is not in the run's folder", "not_found") from error
