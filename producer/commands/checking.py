"""Commands that look whether all is well: doctor, fsck, check-determinism."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from jobs.errors import Exit
from producer.commands import options


def doctor(
    out: Annotated[
        list[str] | None,
        typer.Option("--out", "-o", metavar="URI", help="A location to try; several may be named."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URI", help="The facade's store.", show_default="IMAGEMILL_STORE"),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models whose weights must be on this machine, separated by commas.",
            show_default="the table's default",
        ),
    ] = None,
    devices: options.Devices = "auto",
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Look at broker, storage, devices, models and versions. Exits with 1 if anything is wrong.

    The first thing to run when something does not work.
    """
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.report.checks import show_finding
    from producer.report.console import show_json
    from producer.upkeep.doctor import Wanted, examine

    settings = load_settings(broker, models_file)
    places = [*(out or []), *([] if store is None else [store])]
    wanted = Wanted(places, devices, models.split(",") if models else [])
    found = []
    for finding in examine(settings, load_models(settings.models), wanted):
        found.append(finding)
        if not as_json:
            show_finding(finding)
    if as_json:
        show_json(found)
    if any(finding.state == "wrong" for finding in found):
        raise typer.Exit(Exit.FAILED)


def check_determinism(context: typer.Context) -> None:
    """Whether this machine's device gives the same bytes again. Options: --help."""
    # A process of its own, because this one must never import torch.
    os.execv(
        sys.executable, [sys.executable, "-P", "-m", "worker.commands.determinism", *context.args]
    )


def fsck(
    out: options.Dataset,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Render again what is missing, torn or without a record, score again what has "
            "lost its scores, write the dataset anew, then remove orphans: images that no record "
            "and no row names.",
        ),
    ] = False,
    devices: options.Devices = "auto",
    workers: options.Workers = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare records, images and the dataset. Exits with 1 if anything is wrong and stays so.

    With --repair, --json is about what stays wrong.
    """
    from jobs.output.storage import open_storage
    from jobs.settings import load_settings
    from producer.control.progress import display
    from producer.local.embedded import Crew
    from producer.report.checks import advice_on, show_damage
    from producer.report.console import say, show_json
    from producer.upkeep.fsck import inspect
    from producer.upkeep.fsck import repair as mend

    storage = open_storage(out)
    damage = inspect(storage)
    show = (lambda _: None) if as_json or quiet else show_damage
    show(damage)
    if repair and not damage.is_none:
        with display(quiet) as shown:
            settings = load_settings(models=models_file)
            damage = mend(storage, damage, settings, Crew(devices, workers), shown)
        if not damage.is_none:
            show(damage)
        elif not quiet:
            say("All is mended.")
    if as_json:
        show_json(damage)
    if not damage.is_none:
        say(advice_on(damage, storage))
        raise typer.Exit(Exit.FAILED)
