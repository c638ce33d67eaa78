"""What was used, by teams, models, runs or days."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from rich.text import Text

from producer.report.console import new_table, show

if TYPE_CHECKING:
    from producer.upkeep.usage import Usage


def show_usage(by: str, found: Sequence[Usage]) -> None:
    """A table of what was used."""
    table = new_table(by, "device seconds", "images", "rejected", "failed", "bytes")
    for one in found:
        counts = [f"{count:,}" for count in (one.images, one.rejected, one.failed, one.bytes)]
        table.add_row(Text(one.name), f"{one.device_seconds:,.1f}", *counts)
    show(table)


def show_csv(found: Sequence[Usage]) -> None:
    """The same as CSV on stdout."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "device_seconds", "images", "rejected", "failed", "bytes"])
    writer.writerows(astuple(one) for one in found)
