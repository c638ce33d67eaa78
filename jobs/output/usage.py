"""What was used: seconds of the device, images, failures, bytes.

Records say it of runs. Calls over HTTP leave none, so each worker process keeps sums of its own,
below the location that their images go to:

    _usage/<day>/<process>.jsonl   a line a team and model: all of the day that is known by now
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import FatalError
from jobs.output.records import Row
from jobs.output.storage import Storage

FOLDER = "_usage"

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


@dataclass(slots=True)
class Usage:
    """device_seconds: of pipeline calls, summed over devices; bytes: of images that were stored."""

    device_seconds: float = 0.0
    images: int = 0
    rejected: int = 0
    failed: int = 0
    bytes: int = 0

    def note(self, status: str, seconds: float, size: int) -> None:
        """Count the end of one request."""
        self.device_seconds += seconds
        self.images += status == "done"
        self.rejected += status == "rejected"
        self.failed += status == "failed"
        self.bytes += size

    def note_row(self, row: Row) -> None:
        """Count one record."""
        seconds = row["seconds_render"] + row.get("seconds_lost", 0.0)
        self.note(row["status"], seconds, row.get("bytes", 0))

    def add(self, other: Usage) -> None:
        """Count what another sum has."""
        self.device_seconds += other.device_seconds
        self.images += other.images
        self.rejected += other.rejected
        self.failed += other.failed
        self.bytes += other.bytes


@dataclass(frozen=True, slots=True)
class CallUsage:
    """What calls of a team used of a model."""

    team: str
    model: str
    usage: Usage = field(default_factory=Usage)


_LINE = TypeAdapter(CallUsage)


def calls_path(day: str, process: str) -> str:
    """Where a process writes the sums of a day (2026-03-01)."""
    return f"{FOLDER}/{day}/{process}.jsonl"


def encode_calls(sums: Iterable[CallUsage]) -> bytes:
    """What lies there."""
    return b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in sums)


def read_calls(storage: Storage) -> Iterator[tuple[str, CallUsage]]:
    """The sums of all processes, each with its day. Raises FatalError if a file is none of ours."""
    for day in filter(_DAY.fullmatch, storage.folders(FOLDER)):
        for name in storage.list(f"{FOLDER}/{day}"):
            if name.endswith(".jsonl"):
                path = f"{FOLDER}/{day}/{name}"
                for line in storage.read(path).splitlines():
                    yield day, _read(line, storage.name(path))


def _read(line: bytes, source: str) -> CallUsage:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        raise FatalError(
            f"{source} holds what imagemill did not write: {line[:80]!r}", "Remove that file."
        ) from error
