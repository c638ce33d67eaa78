"""One `imagemill run` or `fsck --repair` at a time in a folder.

Each has a broker of its own, so none sees another.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobs.errors import UsageError
from jobs.output.refusals import classify
from jobs.output.storage import Storage


@contextmanager
def occupied(storage: Storage) -> Iterator[None]:
    """Have an output location alone as long as the block runs. An object store is not looked at.

    Raises:
        UsageError: another process of this machine has it.
    """
    if storage.local_root is None:
        yield
        return
    new = not os.path.exists(storage.local_root)
    try:
        os.makedirs(storage.local_root, exist_ok=True)
        # The folder itself: a lock file would stay behind in people's datasets.
        folder = os.open(storage.local_root, os.O_RDONLY)
    except OSError as error:
        raise classify(error, storage.uri) from error
    try:
        with suppress(OSError):  # some network file systems lock no folders
            _take(folder, storage.uri)
        yield
    finally:
        os.close(folder)
        if new:
            with suppress(OSError):  # it holds something now
                os.rmdir(storage.local_root)


def _take(folder: int, uri: str) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another imagemill run renders into {uri}, or fsck mends it",
            "Wait for its end, or choose another --out.",
        ) from None
