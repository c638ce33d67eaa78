"""The process that encodes and stores, beside the one that renders.

Python lets one thread of a process run at a time: to encode an image and to talk to an object store
would hold the thread up that keeps the device busy, for 4 ms an image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from secrets import token_hex
from typing import Any

from jobs.children import die_with_parent
from jobs.output import layout
from jobs.output.records import Record
from jobs.output.storage import open_storage
from worker.storing import Placed, Shelf

PLACES_KEPT = 8

log = logging.getLogger(__name__)

_open = lru_cache(PLACES_KEPT)(open_storage)


class Clerk:
    """The other process's end. Each thread that calls has a thread of its own here."""

    def put(self, uri: str, worker: str, attempt: int, images: Sequence[Placed]) -> list[Record]:
        """As Shelf.put_all. Without images, storage is reached only."""
        storage = _open(uri)
        if not images:
            storage.exists(layout.RUN)
        return Shelf(storage, worker, attempt).put_all(images)


class _Manager(BaseManager):
    pass


_Manager.register("Clerk", Clerk)


class Storehouse:
    """The process's near end. Make it before there are other threads, and before CUDA: it forks.

    connection: what the other process must let go of, so that whoever listens sees us end.
    """

    def __init__(self, connection: Connection) -> None:
        # A name that is no file, so that none is left behind however we end.
        address = f"\0imagemill-{os.getpid()}-{token_hex(8)}"
        self._manager = _Manager(address, ctx=get_context("fork"))
        self._manager.start(_begin, (os.getpid(), connection))
        self._clerk: Any = self._manager.Clerk()  # type: ignore[attr-defined]

    def put(self, shelf: Shelf, images: Sequence[Placed]) -> list[Record]:
        """Encode and store images, in whichever thread asks.

        Raises:
            TransientError, FatalError: one could not be stored.
        """
        try:
            stored: list[Record] = self._clerk.put(
                shelf.storage.uri, shelf.worker, shelf.attempt, images
            )
        except (EOFError, ConnectionError):
            log.exception("The storing process is gone, and so this one ends")
            os._exit(1)
        return stored


def _begin(parent: int, connection: Connection) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it is gone already
        os._exit(1)
    connection.close()
