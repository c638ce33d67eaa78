"""The command `imagemill`: what its subcommands are, and how errors become exit codes.

The codes are those of jobs.errors.Exit.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from jobs.commands import Group
from jobs.errors import Exit, ImagemillError, exit_of
from producer.commands import (
    checking,
    exporting,
    inspecting,
    rendering,
    scheduling,
    serving,
    watching,
)

HERE = "Render on this machine"
INSTALLATION = "Use an installation of several machines"
LOOK = "Look before and after"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"imagemill {version('imagemill')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Render manifests of image requests with diffusion models, in bulk, deterministically."""


def make_cli() -> typer.Typer:
    """The command with all its subcommands."""
    cli = typer.Typer(
        cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    cli.callback()(_root)
    panels: dict[str, list[Callable[..., None]]] = {
        HERE: [rendering.run, rendering.verify, checking.fsck, serving.up],
        INSTALLATION: [
            rendering.submit,
            watching.status,
            watching.watch,
            watching.pause,
            watching.cancel,
            watching.resume,
            watching.retry,
            watching.prioritize,
            scheduling.inbox,
            serving.serve,
            serving.exporter,
        ],
        LOOK: [
            checking.doctor,
            exporting.preset,
            inspecting.plan,
            watching.usage,
            inspecting.sheet,
            inspecting.page,
            exporting.export,
            exporting.push,
            exporting.diff,
        ],
    }
    for panel, commands in panels.items():
        for command in commands:
            cli.command(rich_help_panel=panel)(command)
    theirs: list[tuple[str, Callable[..., None]]] = [
        (INSTALLATION, rendering.worker),
        (LOOK, rendering.score),
        (LOOK, checking.check_determinism),
    ]
    for panel, command in theirs:
        # Its options are the worker's own; --help included.
        cli.command(
            rich_help_panel=panel,
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(command)
    cli.add_typer(scheduling.make_schedule(), name="schedule", rich_help_panel=INSTALLATION)
    cli.add_typer(inspecting.make_models(), name="models", rich_help_panel=LOOK)
    cli.add_typer(serving.make_keys(), name="keys", rich_help_panel=INSTALLATION)
    return cli


def main() -> None:
    """The entry point."""
    # Whoever stops us politely gets what Ctrl-C gets: children that end first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        try:
            make_cli()(prog_name="imagemill")
        finally:
            if sys.stdout:  # None if it is closed: then nothing is printed
                sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:  # of all others Storage speaks
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is not written at exit either
        print(f"Error: {error.strerror}: the output cannot be written", file=sys.stderr)
        sys.exit(Exit.FAILED)
    except ImagemillError as error:
        from producer.report.errors import show_error

        show_error(error)
        sys.exit(exit_of(error))
