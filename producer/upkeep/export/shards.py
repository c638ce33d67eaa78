"""Which image goes into which shard: decided by one pass over the records, before any is written.

So every process that exports the same dataset in the same way writes the same shards, and one that
exists need not be written again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import IO

import orjson

from jobs.errors import FatalError, UsageError
from jobs.formats import FORMATS
from jobs.output import layout
from jobs.output.records import INCIDENTAL, Row, read_row
from jobs.output.storage import Storage
from producer.upkeep.export.columns import Columns, ColumnSurvey
from producer.upkeep.export.selection import WHOLE, Condition, Split, split_of, unknown_column

ALL = "all"  # columns
_IMAGE = ("file_name", "sha256")
MAX_IMAGES = 10_000  # a shard: a key's last four digits tell them apart
_EXTENSIONS = {entry.extension for entry in FORMATS.values()}
_SIZE = re.compile(r"([0-9]{1,15}) ?(|[kMG]i?B)", re.IGNORECASE)
_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@dataclass(frozen=True, slots=True)
class ShardSize:
    """What a shard holds at most; bytes are those of its images."""

    images: int = MAX_IMAGES
    bytes: int = 500 * 10**6


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: `images` images of its split, the first of them at byte `offset` of the records.

    bytes: of the images.
    """

    split: str
    number: int
    offset: int
    images: int = 0
    bytes: int = 0

    @property
    def name(self) -> str:
        """Its path below the target, without an ending."""
        return f"{self.split}/{self.number:05d}"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images, how they are cut, and their columns.

    columns: their names; (ALL,) for every one, none for those that are of the image.
    """

    condition: Condition | None = None
    splits: tuple[Split, ...] = WHOLE
    size: ShardSize = ShardSize()
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What a dataset becomes. sources: (model, adapter, repo, revision, fingerprint) → images;
    tasks: "generate" or "edit"; extensions: of image files; digest: SHA-256 of what the export has
    of its records: an image that is rendered again, to the same bytes, changes nothing."""

    shards: tuple[Shard, ...]
    columns: Columns
    sources: Counter[tuple[str, ...]]
    tasks: frozenset[str]
    extensions: frozenset[str]
    digest: str

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def splits(self) -> Counter[str]:
        """Split → images, without those that got none."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts[shard.split] += shard.images
        return counts


SOURCE = ("model", "adapter", "repo", "revision", "fingerprint")


def parse_size(text: str) -> ShardSize:
    """A number of images, or of bytes with a unit: 1000, 500MB, 1GiB. Raises UsageError."""
    found = _SIZE.fullmatch(text.strip())
    number, unit = (int(found[1]), found[2].lower()) if found else (0, "")
    if not number or (not unit and number > MAX_IMAGES):
        raise UsageError(
            f"--shard-size {text!r} is no size of a shard",
            f"Give a number of images up to {MAX_IMAGES:,}, or bytes: 500MB, 1GiB.",
        )
    return ShardSize(bytes=number * _UNITS[unit]) if unit else ShardSize(number, 2**62)


def survey(lines: IO[bytes], source: Storage, selection: Selection) -> Survey:
    """Read all records of a dataset once. Memory grows with the shards, not with the images.

    Raises:
        UsageError: a column is named that no row has, or a condition compares what cannot be.
        FatalError: a row is none of ours.
    """
    where = source.name(layout.METADATA)
    columns, digest, tasks, extensions = ColumnSurvey(), sha256(), set[str](), set[str]()
    sources: Counter[tuple[str, ...]] = Counter()
    condition = selection.condition
    unseen = set(condition.columns) if condition else set[str]()
    names = set[str]()
    cuts = _Cuts(selection.size)
    offset = 0
    for line in lines:
        row = read_row(line, where)
        if unseen:
            unseen -= row.keys()
            names |= row.keys()
        if condition is None or condition.holds(row):
            extension = row["file_name"].rsplit(".", 1)[-1]
            size = row.get("bytes")
            known = extension in _EXTENSIONS and row["status"] == "done"
            if not known or not isinstance(size, int) or size < 0:
                raise FatalError(f"{where} holds a row without an image: {line[:80]!r}")
            columns.add(row)
            digest.update(orjson.dumps(_exported(row, selection.columns)))
            sources[tuple(str(row.get(name, "")) for name in SOURCE)] += 1
            tasks.add(str(row.get("task", "")))
            extensions.add(extension)
            cuts.add(split_of(row, selection.splits), offset, size)
        offset += len(line)
    if unseen:
        raise unknown_column("--where", min(unseen), names)
    shards = cuts.shards()
    return Survey(
        shards,
        columns.columns(_left_out(selection.columns, columns.names) | {"image", "key"}),
        sources,
        frozenset(tasks),
        frozenset(extensions),
        digest.hexdigest(),
    )


def lines_of(shard: Shard, lines: IO[bytes], source: Storage, selection: Selection) -> list[bytes]:
    """The records of a shard, as they stand in the dataset's file, which `lines` reads."""
    return list(_lines_of(shard, lines, source, selection))


def _lines_of(
    shard: Shard, lines: IO[bytes], source: Storage, selection: Selection
) -> Iterator[bytes]:
    where, condition = source.name(layout.METADATA), selection.condition
    left = shard.images
    lines.seek(shard.offset)
    while left:
        line = lines.readline()
        row: Row = read_row(line, where)
        if condition is not None and not condition.holds(row):
            continue
        if split_of(row, selection.splits) == shard.split:
            left -= 1
            yield line


class _Cuts:
    """Cuts each split into shards as its images go by."""

    def __init__(self, size: ShardSize) -> None:
        self._size = size
        self._done: list[Shard] = []
        self._open: dict[str, _Open] = {}

    def add(self, split: str, offset: int, size: int) -> None:
        current = self._open.get(split)
        if current is None:
            current = self._open[split] = _Open(0, offset)
        elif current.images == self._size.images or current.bytes + size > self._size.bytes:
            self._done.append(current.shard(split))
            current = self._open[split] = _Open(current.number + 1, offset)
        current.images += 1
        current.bytes += size

    def shards(self) -> tuple[Shard, ...]:
        rest = [current.shard(split) for split, current in self._open.items()]
        return tuple(sorted([*self._done, *rest], key=lambda one: (one.split, one.number)))


@dataclass(slots=True)
class _Open:
    number: int
    offset: int
    images: int = 0
    bytes: int = 0

    def shard(self, split: str) -> Shard:
        return Shard(split, self.number, self.offset, self.images, self.bytes)


def _exported(row: Row, wanted: tuple[str, ...]) -> dict[str, object]:
    """What an export has of a row, and its bytes by their hash."""
    if wanted == (ALL,):
        return {**row}
    if wanted:
        return {name: value for name, value in row.items() if name in wanted or name in _IMAGE}
    return {name: value for name, value in row.items() if name not in INCIDENTAL}


def _left_out(wanted: tuple[str, ...], names: frozenset[str]) -> frozenset[str]:
    """Which of a dataset's columns an export does not get; raises UsageError for unknown ones."""
    if wanted == (ALL,):
        return frozenset()
    if unknown := set(wanted) - names:
        raise unknown_column("--columns", min(unknown), names)
    return names - set(wanted) if wanted else INCIDENTAL
