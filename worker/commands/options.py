"""Options that several of these commands share, worded as the producer's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OneDevice = Annotated[
    str,
    typer.Option(
        "--devices", metavar="LIST", help="auto, cpu, or a GPU; of several the first is taken."
    ),
]
ModelsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A models.toml.", show_default="the built-in one"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
