"""Pictures of a run, small ones made when somebody looks and kept for a while."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from threading import Lock

import anyio
from cachetools import LRUCache
from PIL import Image, ImageOps

from jobs.errors import InvalidRequest
from jobs.output.storage import Storage
from producer.api.wire.threads import in_thread
from producer.look.small import encode, join, shrink

THUMBNAIL_SIDE = 192  # pixels of the longer side
STRIP_SIDE, STRIP_GAP = 144, 8
KEPT_BYTES = 64 * 2**20
MAKERS = 4  # thumbnails that are made at a time; decoding one takes up to 350 MB


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures, as WebP."""

    _kept: LRUCache[tuple[str, str], bytes] = field(
        default_factory=lambda: LRUCache(KEPT_BYTES, getsizeof=len)
    )
    _lock: Lock = field(default_factory=Lock)
    _threads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAKERS))

    async def get(self, storage: Storage, path: str) -> bytes:
        """The thumbnail of an image.

        Raises:
            InvalidRequest: the file is not there (code not_found) or no image.
        """
        key = (storage.uri, path)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            kept = await in_thread(_make, storage, path, threads=self._threads)
            with self._lock:
                self._kept[key] = kept
        return kept

    async def strip(self, storage: Storage, paths: Sequence[str]) -> bytes:
        """Some images side by side, cut to squares. Raises: as get; paths must not be empty."""
        key = (storage.uri, "\n".join(paths))
        with self._lock:
            kept = self._kept.get(key)
        if kept is None:
            small = [await self.get(storage, path) for path in paths]
            kept = await in_thread(_join, small, threads=self._threads)
            with self._lock:
                self._kept[key] = kept
        return kept


def _make(storage: Storage, path: str) -> bytes:
    return encode(shrink(read_picture(storage, path), THUMBNAIL_SIDE))


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
