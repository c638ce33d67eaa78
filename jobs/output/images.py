"""Reads a dataset's images, ahead of their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256

from jobs.errors import FatalError
from jobs.output.records import Row
from jobs.output.storage import Storage

READERS = 16  # images that are read ahead, at most
AHEAD_BYTES = 32 << 20  # of them together, but for the first


class ImageReader:
    """Reads a dataset's images, some ahead of their turn, each checked against its record."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(READERS)

    def read(self, rows: Sequence[Row]) -> Iterator[bytes]:
        """The rows' images in their order.

        Raises:
            FatalError: one is missing, or is not what its record says.
        """
        ahead: deque[tuple[int, Future[bytes]]] = deque()
        size = 0
        for row in rows:
            while len(ahead) == READERS or (ahead and size + row["bytes"] > AHEAD_BYTES):
                read, image = ahead.popleft()
                size -= read
                yield image.result()
            ahead.append((row["bytes"], self._pool.submit(self._image, row)))
            size += row["bytes"]
        for _, image in ahead:
            yield image.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _image(self, row: Row) -> bytes:
        name = self._storage.name(row["file_name"])
        try:
            data = self._storage.read(row["file_name"])
        except FileNotFoundError:
            raise FatalError(f"{name} is missing", self._hint) from None
        if sha256(data).hexdigest() != row.get("sha256"):
            raise FatalError(f"{name} is not what its record says", self._hint)
        return data

    @property
    def _hint(self) -> str:
        return f"imagemill fsck {self._storage.uri} --repair mends it; then run this again."
