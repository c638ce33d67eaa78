"""Several `imagemill up` on one store of this machine: the first keeps the broker, all use it.

So claims of calls, chunks and batches hold between them, as between any workers and facades.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from jobs.errors import FatalError, TransientError
from jobs.output.storage import open_storage
from jobs.settings import Settings
from producer.local.embedded import (
    START_SECONDS,
    Crew,
    Embedded,
    embedded,
    manned,
    private_folder,
)

LOCK = ".imagemill-up"  # in the store: held by the first, with the broker's URL in it


class HostLeft(TransientError):
    """The process whose broker this one used has ended."""


@dataclass
class Guest(Embedded):
    """Workers at another process's broker. lock: what that process holds as long as it lives."""

    lock: TextIO | None = None

    def check(self) -> None:
        """Raises HostLeft if the broker's process has ended, FatalError if the workers have."""
        if self.lock and _take(self.lock):
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            raise HostLeft("the other imagemill up on this store has ended")
        super().check()


@contextmanager
def shared(settings: Settings, crew: Crew) -> Iterator[Embedded]:
    """A broker for all that run on a store, and workers of one's own as soon as `serve` is called.

    Yields a Guest where another process has the broker. An object store is not looked at.

    Raises:
        FatalError: the broker does not start, or the other process's does not answer.
    """
    place = open_storage(settings.store).local_root if settings.store else None
    if place is None:
        with embedded(settings, crew) as site:
            yield site
        return
    Path(place).mkdir(parents=True, exist_ok=True)
    with Path(place, LOCK).open("a+") as lock:
        broker = _host(lock)
        if broker is None:
            with embedded(settings, crew) as site:
                lock.write(site.settings.broker)
                lock.flush()
                yield site
            return
        known = settings.model_copy(update={"broker": broker})
        with (
            private_folder() as folder,
            manned(Guest(known, crew, folder, None, lock=lock)) as site,
        ):
            yield site


def _host(lock: TextIO) -> str | None:
    """The URL of the broker that another process keeps; None if that is this one's to do."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if _take(lock):
            return None
        lock.seek(0)
        if broker := lock.read():
            return broker
        time.sleep(0.1)  # it starts right now
    raise FatalError(f"{lock.name} is held by a process that has no broker", "End that process.")


def _take(lock: TextIO) -> bool:
    """Whether nobody held a lock; then this process does, and no old URL is in it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    lock.truncate(0)
    return True
