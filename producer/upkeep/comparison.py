"""What differs between two datasets that asked for the same: pixels of images, and columns."""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from jobs.errors import FatalError, InvalidRequest
from jobs.inputs.images import InputPolicy, check_image, open_image
from jobs.output import layout
from jobs.output.dataset import open_rows, read_finished
from jobs.output.records import INCIDENTAL, Row, read_row
from jobs.output.storage import Storage, open_storage

READERS = 4  # pairs of images that are compared at a time
SHOWN = 20  # images that differ most
SHOWN_VALUE = 80  # characters

# What differs from run to run, and what says less than the pixels do.
_IGNORED = INCIDENTAL | {"index", "file_name", "job_id", "sha256", "bytes"}


@dataclass(frozen=True, slots=True)
class Change:
    """An image that differs: its name in both datasets, and by how much.

    largest, mean: the difference of its pixels' channels, 0 to 255; problem: why there is none.
    """

    custom_id: str
    first: str
    second: str
    largest: int = 0
    mean: float = 0.0
    problem: str = ""


@dataclass(slots=True)
class Column:
    """In how many requests a column differs, and the values of the first of them."""

    requests: int
    first: str
    second: str


@dataclass(slots=True)
class Comparison:
    """common: requests with an image in both, `equal` of them with the same bytes.

    close: those that differ by at most 1 of 255 anywhere; incomparable: those whose sizes differ or
    that cannot be read; largest, mean: over the others that differ; worst: the first of them.
    """

    common: int = 0
    only_first: int = 0
    only_second: int = 0
    equal: int = 0
    close: int = 0
    incomparable: int = 0
    largest: int = 0
    mean: float = 0.0
    worst: list[Change] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Images whose bytes differ."""
        return self.common - self.equal

    @property
    def differs(self) -> bool:
        """Whether one of them has an image that the other has not, or not with these bytes."""
        return bool(self.changed or self.only_first or self.only_second)


def compare(first: str, second: str, progress: Callable[[int, int], None]) -> Comparison:
    """Compare the images and records of two finished datasets.

    Requests are the same by their job id; else, as with another model, by their custom_id.

    Raises:
        UsageError: one of them holds no finished run.
    """
    storages = open_storage(first), open_storage(second)
    for storage in storages:
        read_finished(storage)
    found = Comparison()
    with open_rows(storages[0]) as ours, open_rows(storages[1]) as theirs:
        index = _Index(ours, storages[0].name(layout.METADATA))
        changes = _changes(_differing(index, theirs, storages[1], found), *storages)
        _measure(changes, found, lambda: progress(found.common, len(index)))
    found.only_first = len(index) - found.common
    return found


def _differing(
    index: _Index, lines: IO[bytes], storage: Storage, found: Comparison
) -> Iterator[tuple[Row, Row]]:
    """The pairs whose bytes differ; counts the others."""
    where = storage.name(layout.METADATA)
    for line in lines:
        theirs = _image_row(line, where)
        ours = index.find(theirs)
        if ours is None:
            found.only_second += 1
            continue
        found.common += 1
        _compare_columns(ours, theirs, found.columns)
        if ours.get("sha256") == theirs.get("sha256"):
            found.equal += 1
        else:
            yield ours, theirs


def _compare_columns(ours: Row, theirs: Row, columns: dict[str, Column]) -> None:
    for name in (ours.keys() | theirs.keys()) - _IGNORED:
        values = ours.get(name), theirs.get(name)
        if values[0] != values[1]:
            column = columns.get(name)
            if column is None:
                column = columns[name] = Column(0, *map(_shown, values))
            column.requests += 1


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    text = "".join(c if c.isprintable() else " " for c in text[: SHOWN_VALUE + 1])
    return text if len(text) <= SHOWN_VALUE else f"{text[: SHOWN_VALUE - 1]}…"


def _changes(pairs: Iterator[tuple[Row, Row]], first: Storage, second: Storage) -> Iterator[Change]:
    """Each pair's difference; some pairs are compared ahead of their turn."""
    ahead: deque[Future[Change]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for ours, theirs in pairs:
            ahead.append(pool.submit(_change, ours, theirs, first, second))
            if len(ahead) > READERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _change(ours: Row, theirs: Row, first: Storage, second: Storage) -> Change:
    names = _shown(ours.get("custom_id", "")), ours["file_name"], theirs["file_name"]
    try:
        one, other = _pixels(first, ours), _pixels(second, theirs)
    except InvalidRequest as error:
        return Change(*names, problem=str(error))
    if one.size != other.size:
        sizes = (f"{image.width} x {image.height}" for image in (one, other))
        return Change(*names, problem=" against ".join(sizes))
    counts = np.array(ImageChops.difference(one, other).histogram()).reshape(3, 256).sum(axis=0)
    mean = float(counts @ np.arange(256)) / float(counts.sum())
    return Change(*names, int(np.flatnonzero(counts)[-1]), mean)


def _pixels(storage: Storage, row: Row) -> Image.Image:
    """Raises InvalidRequest for what is missing or no image."""
    name = row["file_name"]
    try:
        data = storage.read(name)
        check_image(data, InputPolicy(), storage.name(name))
        return open_image(data, storage.name(name))
    except FileNotFoundError:
        raise InvalidRequest(storage.name(name), "is missing") from None


def _measure(changes: Iterator[Change], found: Comparison, progress: Callable[[], None]) -> None:
    worst: list[tuple[int, int, float, int, Change]] = []
    total = 0.0
    measured = 0
    for number, change in enumerate(changes):
        if change.problem:
            found.incomparable += 1
        else:
            measured += 1
            found.close += change.largest <= 1
            found.largest = max(found.largest, change.largest)
            total += change.mean
        rank = (bool(change.problem), change.largest, change.mean, -number, change)
        (heapq.heappush if len(worst) < SHOWN else heapq.heappushpop)(worst, rank)
        progress()
    found.mean = total / measured if measured else 0.0
    found.worst = [change for *_, change in sorted(worst, reverse=True)]


class _Index:
    """Where a dataset's rows lie in its file, by hashes of their names: 32 bytes a row."""

    def __init__(self, lines: IO[bytes], where: str) -> None:
        self._lines, self._where = lines, where
        hashes, offsets = array("Q"), array("Q")
        offset = rows = 0
        for line in lines:
            for name in _names(_image_row(line, where)):
                hashes.append(_hash(name))
                offsets.append(offset)
            offset += len(line)
            rows += 1
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes: npt.NDArray[np.uint64] = np.frombuffer(hashes, np.uint64)[order]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def find(self, row: Row) -> Row | None:
        """The row of the same request."""
        for name in _names(row):
            wanted = np.uint64(_hash(name))
            first, end = (int(self._hashes.searchsorted(wanted, s)) for s in ("left", "right"))
            for at in range(first, end):
                self._lines.seek(int(self._offsets[at]))
                found = _image_row(self._lines.readline(), self._where)
                if name in _names(found):
                    return found
        return None


def _image_row(line: bytes, where: str) -> Row:
    row = read_row(line, where)
    if row["status"] != "done":
        raise FatalError(f"{where} holds a row without an image: {line[:80]!r}")
    return row


def _names(row: Row) -> list[str]:
    """What a request is known by, the surest first."""
    custom_id = row.get("custom_id")
    return [row["job_id"], *([f"custom_id {custom_id}"] if custom_id else [])]


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
