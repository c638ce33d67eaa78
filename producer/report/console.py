"""What every report is printed with: results on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # so that a command loads only what it needs itself
    from jobs.logs import LogFormat

UNBOUNDED = 1 << 20  # characters of a line
UNBROKEN = ("nominal time", "next")  # columns

log = logging.getLogger(__name__)


def say(text: str) -> None:
    """A line for people, on stderr."""
    new_console(stderr=True).print(text)


@contextmanager
def said_if_stopped(text: str) -> Iterator[None]:
    """Say it where Ctrl-C ends the block: what became of the work, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # or files that are half written complain at the end
        say(text)
        raise


def show(result: str | Table) -> None:
    """A line of the result or a table, on stdout."""
    new_console().print(result)


def show_json(value: Any) -> None:
    """A dataclass or plain data, as JSON on stdout."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    print(orjson.dumps(value, option=options).decode(), end="")


def announce(text: str, form: LogFormat) -> None:
    """A line about this process itself: for people, or of the log where that is JSON."""
    if form == "json":
        log.info(text)
    else:
        say(text)


def show_event(event: Any) -> None:
    """A dataclass as a line of JSON on stdout, at once, with the time."""
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(event)
    print(orjson.dumps(line).decode(), flush=True)


def new_console(stderr: bool = False) -> Console:
    """What prints a text as it stands."""
    # No markup: prompts, paths and reasons may hold anything.
    console = Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:  # what reads it wants ids and paths whole, and a row a line
        console.width = UNBOUNDED
    return console


def new_table(*columns: str) -> Table:
    """A table without lines, whose rows are to be added."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in UNBROKEN)
    return table


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
