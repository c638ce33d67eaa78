"""The command fsck."""

from __future__ import annotations

from typing import Annotated

import typer

from producer.commands import options


def fsck(
    out: options.Dataset,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Render missing and torn images again, remove orphans."),
    ] = False,
    devices: options.Devices = "auto",
    workers: options.Workers = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare records and images both ways. Exits with 1 if anything is wrong and stays so."""
    from jobs.settings import load_settings
    from jobs.storage import open_storage
    from producer.embedded import Crew
    from producer.fsck import inspect
    from producer.fsck import repair as mend
    from producer.progress import display
    from producer.report import say, show_damage, show_json

    storage = open_storage(out)
    damage = inspect(storage)
    if as_json:
        show_json(damage)
    elif not quiet:
        show_damage(damage)
    if damage.is_none:
        return
    if not repair:
        say(f"imagemill fsck {out} --repair mends this.")
        raise typer.Exit(1)
    with display(quiet) as shown:
        left = mend(
            storage, damage, load_settings(models=models_file), Crew(devices, workers), shown
        )
    if not left.is_none:
        show_damage(left)
        raise typer.Exit(1)
    if not quiet:
        say("All is mended.")
