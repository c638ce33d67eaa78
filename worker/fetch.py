"""`imagemill models fetch`, also `python -m worker.fetch`: weights onto this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import EXIT_USAGE, USAGE_ERRORS, ImagemillError
from jobs.models.table import ModelTable, load_models
from jobs.settings import load_settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Names of the models table, or repositories.",
            show_default="all of the models table",
        ),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A models.toml.", show_default="the built-in one"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Download weights to this machine: only the files that are loaded, each once.

    What models.toml does not pin is the newest commit, and this machine stays with it. Gated
    repositories need HF_TOKEN. Run again, it goes on where it stopped.
    """
    try:
        table = load_models(load_settings(models=models_file).models)
        for name in names or table.usual:
            _fetch(name, table, quiet)
    except ImagemillError as error:
        typer.echo(str(error), err=True)
        sys.exit(EXIT_USAGE if isinstance(error, USAGE_ERRORS) else 1)


def _fetch(name: str, table: ModelTable, quiet: bool) -> None:
    model = table.get(table.route(name).model)
    from worker.pipelines.fetching import fetch_model  # takes seconds: names are checked before

    if quiet:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    for source, commit in fetch_model(table, model).items():
        if not quiet:
            typer.echo(f"{name}: {source} {commit or 'is a folder here'}")


if __name__ == "__main__":
    app(prog_name="imagemill models fetch")
