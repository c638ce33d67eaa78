"""The process that encodes, stores and scores, beside the one that renders.

Python lets one thread of a process run at a time: to encode an image and to talk to an object store
would hold the thread up that keeps the device busy, for 4 ms an image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.managers import BaseManager
from secrets import token_hex
from typing import Any

from jobs.children import die_with_parent
from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.records import Record
from jobs.output.storage import Storage, open_storage
from worker.scoring.raters import Raters
from worker.storing import Placed, Shelf

PLACES_KEPT = 8

log = logging.getLogger(__name__)

_open = lru_cache(PLACES_KEPT)(open_storage)


class Clerk:
    """The other process's end. Each thread that calls has a thread of its own here.

    device: of scorers with weights, "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._raters = Raters(device)

    def put(
        self,
        uri: str,
        worker: str,
        attempt: int,
        images: Sequence[Placed],
        scorers: tuple[str, ...] = (),
    ) -> list[Record]:
        """As Shelf.put; then the images are scored. Without images, storage is reached only."""
        storage = _open(uri)
        if not images:
            storage.exists(layout.RUN)
        shelf = Shelf(storage, worker, attempt)
        if not scorers:
            return shelf.put_all(images)
        return self._raters.rate([shelf.put(one, path) for one, path in images], scorers)

    def score(self, uri: str, plan: Plan) -> dict[str, str]:
        """As Raters.score."""
        return self._raters.score(_open(uri), plan)


class _Manager(BaseManager):
    pass


_Manager.register("Clerk", Clerk)


class Storehouse:
    """The process's near end. Make it before there are other threads, and before CUDA: it forks.

    connection: what the other process must let go of, so that whoever listens sees us end.
    """

    def __init__(self, connection: Connection, device: str) -> None:
        # A name that is no file, so that none is left behind however we end.
        address = f"\0imagemill-{os.getpid()}-{token_hex(8)}"
        self._manager = _Manager(address, ctx=get_context("fork"))
        self._manager.start(_begin, (connection,))
        self._clerk: Any = self._manager.Clerk(device)  # type: ignore[attr-defined]

    def put(self, shelf: Shelf, images: Sequence[Placed]) -> list[Record]:
        """Encode, store and score images, in whichever thread asks.

        Raises:
            TransientError, FatalError: one could not be stored.
        """
        with _both_or_none():
            stored: list[Record] = self._clerk.put(
                shelf.storage.uri, shelf.worker, shelf.attempt, images, shelf.scorers
            )
        return stored

    def score(self, storage: Storage, plan: Plan) -> dict[str, str]:
        """Score the images of a run that have no scores yet: scorer → why it could not.

        Raises:
            TransientError, FatalError: storage is not to be had.
        """
        with _both_or_none():
            problems: dict[str, str] = self._clerk.score(storage.uri, plan)
        return problems


@contextmanager
def _both_or_none() -> Iterator[None]:
    """This process ends if the other one is gone."""
    try:
        yield
    except (EOFError, ConnectionError):
        log.exception("The storing process is gone, and so this one ends")
        os._exit(1)


def _begin(connection: Connection) -> None:
    die_with_parent()
    connection.close()
