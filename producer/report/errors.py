"""What failed, and what to do next."""

from __future__ import annotations

from rich.text import Text

from jobs.errors import ImagemillError, ManifestRefused
from producer.report.console import new_console


def show_error(error: ImagemillError) -> None:
    """What failed and what to do next; of a refused manifest also its first bad lines."""
    console = new_console(stderr=True)
    console.print(Text("Error: ", "bold red"), Text(error.message), sep="")
    if isinstance(error, ManifestRefused):
        for line in error.errors:
            console.print(f"  {line}")
        if error.reasons > len(error.errors):
            more = f"{error.reasons - len(error.errors):,} more"
            console.print(
                f"  … and {more}: imagemill plan, with these options and --json, lists them"
            )
    if error.hint:
        console.print(error.hint)
