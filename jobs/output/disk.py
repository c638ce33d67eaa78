"""Files of this machine's disk that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def missing(folder: str) -> list[str]:
    """What has to be made before a folder exists, itself first."""
    found = list[str]()
    while not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found


@contextmanager
def renamed_into(target: str) -> Iterator[str]:
    """A temporary name beside `target` that becomes it when the block succeeds."""
    with beside(target) as temporary:
        yield temporary
        os.replace(temporary, target)


@contextmanager
def beside(target: str) -> Iterator[str]:
    """A temporary name beside `target`; nothing has it when the block ends."""
    folder, name = os.path.split(target)
    # The leading dot keeps a half-written file out of every image loader's listing.
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
    os.makedirs(folder, exist_ok=True)
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)
