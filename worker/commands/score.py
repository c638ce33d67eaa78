"""`imagemill score`: columns for the images of a finished run."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import Progress

from jobs.errors import EXIT_USAGE, USAGE_ERRORS, ImagemillError
from jobs.output.storage import Storage, open_storage
from worker.process.devices import choose_devices
from worker.process.environment import environment
from worker.scoring.job import Outcome, score
from worker.scoring.scorer import make_scorer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output location of a finished run.")],
    scorers: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="NAME[=WEIGHTS]",
            help="statistics, duplicates, shapes, clip=FOLDER or REPOSITORY, or what is installed; "
            "may be repeated.",
        ),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, or a GPU, for scorers with weights.")] = (
        "auto"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score the images of a finished run, render nothing.

    The scores become columns of metadata.jsonl, for export --where and whoever reads it. Run again,
    it scores only what is new; several at once, on one machine or many, share the work.
    """
    try:
        storage = open_storage(out)
        chosen = choose_devices(device)[0]
        os.environ.update(environment(chosen, 1))  # before torch is imported
        outcomes = [_score(storage, one, chosen.kind, quiet or as_json) for one in scorers]
    except ImagemillError as error:
        typer.echo(str(error), err=True)
        sys.exit(EXIT_USAGE if isinstance(error, USAGE_ERRORS) else 1)
    if as_json:
        typer.echo(orjson.dumps([asdict(one) for one in outcomes], option=orjson.OPT_INDENT_2))


def _score(storage: Storage, wanted: str, device: str, quiet: bool) -> Outcome:
    name, _, weights = wanted.partition("=")
    scorer, scoring = make_scorer(name, weights, device)
    with Progress(console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(name, total=None)
        outcome = score(
            storage, scorer, scoring,
            lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if not quiet:
        typer.echo(_told(outcome))
    return outcome


def _told(outcome: Outcome) -> str:
    new = (
        "all of them now" if outcome.scored == outcome.images else f"{outcome.scored:,} of them now"
    )
    return f"{outcome.images:,} images have {', '.join(outcome.columns)} ({new})"


if __name__ == "__main__":
    app(prog_name="imagemill score")
