"""Columns that a manifest's lines say of their images: labels, sources, scores of others.

They change no image and no identity. A run's copy of its manifest has them, and the dataset takes
them from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Annotated, Any, cast

import orjson
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.records import OWN_COLUMNS, Row
from jobs.output.storage import Storage

MAX_KEPT = 100  # columns of a line
MAX_TEXT = 32_768  # characters of a value


def is_free(name: str) -> bool:
    """Whether a line may keep a column of this name."""
    return name.isprintable() and name not in OWN_COLUMNS


def _free(name: str) -> str:
    if name in OWN_COLUMNS:
        raise ValueError(f"{name} is a column that each dataset has")
    if not is_free(name):
        raise ValueError("a column's name has no control characters")
    return name


def _fits(value: str | float) -> str | float:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("whole numbers have 64 bits")  # no column of Arrow's takes more
    return value


_Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_free)]
_Value = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT)] | bool | int | float, AfterValidator(_fits)
]
Kept = Annotated[dict[_Name, _Value], Field(max_length=MAX_KEPT)]

KEPT = TypeAdapter(Kept, config=ConfigDict(strict=True, allow_inf_nan=False))


class Keeper:
    """Adds to rows what their lines keep."""

    def __init__(self, lines: IO[bytes], name: str) -> None:
        self._lines, self._name = lines, name
        self._next = 0  # the line that is read next
        self._kept: dict[str, Any] = {}  # of the one before it

    def join(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with these columns. They follow all earlier ones, in the lines' order.

        Raises:
            FatalError: what is read is not the manifest of their plan.
        """
        return [cast("Row", row | self._of(row["index"])) for row in rows]

    def _of(self, index: int) -> dict[str, Any]:
        if index < self._next - 1:
            raise ValueError(f"line {index} was read before")
        if index >= self._next:
            line = b""
            for _ in range(index - self._next + 1):
                line = self._lines.readline()
            self._next = index + 1
            try:
                self._kept = KEPT.validate_python(orjson.loads(line).get("keep") or {})
            except (orjson.JSONDecodeError, AttributeError, ValidationError) as error:
                raise FatalError(
                    f"{self._name} is not the manifest of its plan: line {index + 1}",
                    "Give the run another output location, and submit its manifest there.",
                ) from error
        return self._kept


@contextmanager
def keeper(storage: Storage, plan: Plan) -> Iterator[Keeper | None]:
    """What reads the columns that a run's lines keep; None if they keep none."""
    if not plan.keeps:
        yield None
        return
    path = layout.manifest(plan.run_id)
    with storage.reader(path) as lines:
        yield Keeper(lines, storage.name(path))
