"""How these commands end where something is wrong: as the producer's do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from jobs.errors import ImagemillError, exit_of


@contextmanager
def explained() -> Iterator[None]:
    """Turns an error into its text on stderr and an exit code."""
    try:
        yield
    except ImagemillError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(Text("Error: ", "bold red"), Text(error.message), sep="")
        if error.hint:
            console.print(Text(error.hint))
        sys.exit(exit_of(error))
