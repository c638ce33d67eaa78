"""Forms that a dataset is written in. Each takes a run's rows in manifest order, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Protocol, Self

from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.records import Row, encode_part
from jobs.output.storage import Storage


class DatasetWriter(Protocol):
    """One form of a dataset, in a `with` block: whole when that ends, nothing if it raises."""

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows that follow all earlier ones."""

    def close(self) -> None:
        """Make what was written visible."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class FilesWriter:
    """What writers share whose files are streams: `_files` holds these, the last to appear first.

    Whatever else is pushed there ends before those that were pushed earlier.
    """

    def __init__(self) -> None:
        self._files = ExitStack()

    def close(self) -> None:
        """All files replace those that were there."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)


class JsonlWriter(FilesWriter):
    """metadata.jsonl beside the images, as `datasets` reads an image folder, and errors.jsonl.

    chooses: whether there is a rejects.jsonl as well.
    """

    def __init__(self, storage: Storage, chooses: bool = False) -> None:
        super().__init__()
        self._rejects = (
            self._files.enter_context(storage.writer(layout.REJECTS)) if chooses else None
        )
        if not chooses:
            storage.remove(layout.REJECTS)  # of an earlier run
        self._images = self._files.enter_context(storage.writer(layout.METADATA))
        self._errors = self._files.enter_context(storage.writer(layout.ERRORS))

    def add(self, rows: Sequence[Row]) -> None:
        """Rows with an image go to the one file, the others to the other."""
        self._images.write(encode_part(row for row in rows if row["status"] == "done"))
        self._errors.write(encode_part(row for row in rows if row["status"] != "done"))

    def add_rejects(self, rows: Sequence[Row]) -> None:
        """Candidates that were not chosen, with or without an image."""
        if self._rejects:
            self._rejects.write(encode_part(rows))


class JsonlComparer:
    """In place of a JsonlWriter: compares the files that are there with what it would write.

    opened: closes them.
    """

    def __init__(self, storage: Storage, opened: ExitStack, chooses: bool = False) -> None:
        self._files: dict[str, IO[bytes]] = {}
        self._stale: set[str] = set()
        for name in layout.DATASET if chooses else (layout.METADATA, layout.ERRORS):
            try:
                self._files[name] = opened.enter_context(storage.reader(name))
            except (FileNotFoundError, FatalError):
                self._stale.add(name)

    def add(self, rows: Sequence[Row]) -> None:
        self._compare(layout.METADATA, [row for row in rows if row["status"] == "done"])
        self._compare(layout.ERRORS, [row for row in rows if row["status"] != "done"])

    def add_rejects(self, rows: Sequence[Row]) -> None:
        self._compare(layout.REJECTS, rows)

    def stale(self) -> list[str]:
        """The files that are gone, or hold others than these rows."""
        longer = {name for name, file in self._files.items() if file.read(1)}
        return sorted(self._stale | longer)

    def _compare(self, name: str, rows: Sequence[Row]) -> None:
        expected = encode_part(rows)
        if name in self._files and self._files[name].read(len(expected)) != expected:
            self._stale.add(name)
