"""A step of a day with a GPU, in its own process: what it gets, and where it writes what it found.

python -m benchmarks.gpu.step MODULE:FUNCTION FILE DAY     # as benchmarks/gpu_day.py calls it
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import TypeAdapter

from jobs.errors import FatalError, ImagemillError

Scale = Literal["real", "tiny"]


@dataclass(frozen=True)
class Day:
    """What all steps share.

    device: "cuda" or "cpu"; scale: of the models; out: where JSON goes; weights: where models are
    built, and kept for the steps that follow.
    """

    device: str
    scale: Scale
    out: Path
    weights: Path

    @property
    def is_real(self) -> bool:
        return self.scale == "real"


@dataclass
class Notes:
    """What a step has found, in its file as soon as it is told: whatever cuts it off loses nothing.

    Tables are lists of rows, each a flat object.
    """

    file: Path
    found: dict[str, Any] = field(default_factory=dict)

    def tell(self, **values: object) -> None:
        """Set single values."""
        self.found |= values
        self._write()

    def row(self, table: str, **values: object) -> None:
        """Add a row to a table."""
        self.found.setdefault(table, []).append(values)
        self._write()

    def _write(self) -> None:
        whole = self.file.with_suffix(".part")
        whole.write_bytes(orjson.dumps(self.found, option=orjson.OPT_INDENT_2))
        whole.replace(self.file)


def found_by(step: str, day: Day, table: str) -> list[dict[str, Any]]:
    """The rows of a table that another step has found.

    Raises:
        FatalError: there are none.
    """
    rows: list[dict[str, Any]] = []
    with suppress(OSError):
        content = orjson.loads((day.out / f"{step}.json").read_bytes())
        rows = content["found"].get(table, [])
    if not rows:
        raise FatalError(f"there is nothing to compare with: the step {step} comes before this one")
    return rows


def find(function: str) -> Callable[[Day, Notes], None]:
    """The function that "module:function" names."""
    module, _, name = function.partition(":")
    found: Callable[[Day, Notes], None] = getattr(importlib.import_module(module), name)
    return found


def main(function: str, file: str, day: str) -> int:
    try:
        find(function)(TypeAdapter(Day).validate_json(day), Notes(Path(file)))
    except ImagemillError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
