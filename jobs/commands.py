"""Commands that say plainly what is wrong with an option: in the words of settings, not pydantic's.

Groups say it of all their commands, nested ones included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from pydantic import ValidationError


class Command(TyperCommand):
    """A command that stands alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _plainly():
            return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A command whose subcommands may be of any class."""

    def invoke(self, ctx: Any) -> Any:
        with _plainly():
            return super().invoke(ctx)


@contextmanager
def _plainly() -> Iterator[None]:
    try:
        yield
    except typer.BadParameter as error:
        from pydantic import ValidationError  # --help is fast

        if isinstance(error.__cause__, ValidationError):
            error.message = _reason(error.__cause__)
        raise


def _reason(error: ValidationError) -> str:
    from jobs.errors import resembling, shown
    from jobs.mistakes import reason_of

    mistake = error.errors()[0]
    reason = reason_of(mistake)
    if mistake["type"] != "value_error":
        return f"{reason} (got {shown(mistake['input'])})"
    _, _, choices = reason.partition(" is not one of ")  # in typer's words
    near = resembling(str(mistake["input"]), re.findall("'([^']*)'", choices))
    return f"{reason.rstrip('.')}{near}"
