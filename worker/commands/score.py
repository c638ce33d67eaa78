"""`imagemill score`: columns for the images of a finished run."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.progress import Progress

from jobs.commands import Command
from jobs.output.storage import Storage, open_storage
from worker.commands import options
from worker.commands.ending import explained
from worker.process.devices import choose_devices
from worker.process.environment import environment
from worker.scoring.job import Outcome, score
from worker.scoring.rater import make_rater

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
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
    devices: options.OneDevice = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score the images of a finished run, render nothing.

    The scores become columns of metadata.jsonl, for export --where and whoever reads it. Run again,
    it scores only what is new; several at once, on one machine or many, share the work.
    """
    with explained():
        storage = open_storage(out)
        chosen = choose_devices(devices)[0]
        os.environ.update(environment(chosen, 1))  # before torch is imported
        outcomes = [_score(storage, one, chosen.kind, quiet or as_json) for one in scorers]
    if as_json:
        typer.echo(orjson.dumps([asdict(one) for one in outcomes], option=orjson.OPT_INDENT_2))


def _score(storage: Storage, wanted: str, device: str, quiet: bool) -> Outcome:
    rater = make_rater(wanted, device)
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal  # where a bar is but an empty line
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(rater.scoring.name, total=None)
        outcome = score(
            storage, rater, lambda done, total: bar.update(task, completed=done, total=total)
        )
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
