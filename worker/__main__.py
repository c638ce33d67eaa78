"""`imagemill worker`, also `python -m worker`: one worker process a device, until it is stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.broker.connection import check_kind
from jobs.commands import Command
from jobs.errors import Exit, ImagemillError, exit_of
from jobs.logs import LogFormat, log_to_stderr
from jobs.models.table import load_models
from jobs.settings import load_settings
from worker.process.devices import choose_devices
from worker.process.supervisor import Supervisor

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(cls=Command)
def worker(
    devices: Annotated[
        str, typer.Option(help="auto (every GPU, or the CPU if there is none), cpu, or 0,1,…")
    ] = "auto",
    models: Annotated[
        str | None,
        typer.Option(
            help="Models to serve, separated by commas: names of the models table, repositories "
            "or folders. The first is loaded at once.",
            show_default="all of the models table but null",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the CPU.", show_default="1"),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            help="Redis URL: redis://, rediss://, redis+socket:///path or sentinel://.",
            show_default="IMAGEMILL_BROKER, or this machine's port 6379",
        ),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(help="A models.toml.", show_default="the built-in one"),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            help="What is written to stderr.", show_default="IMAGEMILL_LOG_FORMAT, or text"
        ),
    ] = None,
) -> None:
    """Render what producers queue, with one process a device.

    Runs until it is stopped. Ctrl-C or SIGTERM lets the batches under way finish and puts the rest
    back; a second one stops at once. A process that dies is started again.
    """
    try:
        settings = load_settings(broker, models_file, log_format)
        log_to_stderr(settings.log_format)
        check_kind(settings)
        table = load_models(settings.models)
        served = models.split(",") if models else table.usual
        # Only models that were asked for must be there: a table may list more than is downloaded.
        required = served if models else []
        code = Supervisor(settings, table, choose_devices(devices, workers), served, required).run()
    except ImagemillError as error:
        typer.echo(str(error), err=True)
        code = Exit.USAGE if exit_of(error) is Exit.USAGE else Exit.HOPELESS
    sys.exit(code)


if __name__ == "__main__":
    app(prog_name="imagemill worker")
