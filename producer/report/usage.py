"""What was used, by teams, models, runs or days."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from producer.report.console import new_table, show

if TYPE_CHECKING:
    from producer.upkeep.usage import Line


def show_usage(by: str, found: Sequence[Line]) -> None:
    """A table of what was used."""
    table = new_table(by, "device seconds", "images", "rejected", "failed", "bytes")
    for one in found:
        used = one.usage
        counts = [f"{count:,}" for count in (used.images, used.rejected, used.failed, used.bytes)]
        table.add_row(Text(one.name), f"{used.device_seconds:,.1f}", *counts)
    show(table)


def show_csv(found: Sequence[Line]) -> None:
    """The same as CSV on stdout."""
    columns = ("name", "device_seconds", "images", "rejected", "failed", "bytes")
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.row() for one in found)
