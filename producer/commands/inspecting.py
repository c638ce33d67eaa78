"""Commands that render nothing: plan, models, sheet."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from producer.commands import options


def plan(
    manifest: options.Manifest,
    model: options.Model = None,
    limit: options.Limit = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Check and count a manifest, estimate its time; enqueue nothing. Exits with 2 if invalid."""
    from jobs.models import load_models
    from jobs.settings import load_settings
    from producer.progress import display
    from producer.rates import estimate, rates_file, read_rates
    from producer.report import show_json, show_survey
    from producer.resolution import PlanOptions
    from producer.submission import survey

    table = load_models(load_settings(models=models_file).models)
    with display(quiet) as shown:
        found = survey(manifest, table, PlanOptions(model=model, limit=limit), shown.planning)
    rates = read_rates(rates_file())
    if as_json:
        groups = [
            asdict(key) | {"images": images} | asdict(estimate(key, images, table, rates))
            for key, images in found.groups.items()
        ]
        errors = [asdict(error) for error in found.errors]
        counts = {"requests": found.requests, "invalid": found.invalid}
        show_json(counts | {"errors": errors, "groups": groups})
    elif not quiet:
        show_survey(found, table, rates)
    if found.invalid:
        raise typer.Exit(2)


def models(models_file: options.ModelsFile = None, as_json: options.Json = False) -> None:
    """Show the models table and what each model can do."""
    from jobs.models import load_models
    from jobs.settings import load_settings
    from producer.report import show_json, show_models

    table = load_models(load_settings(models=models_file).models)
    if as_json:
        rows = {name: model.model_dump(mode="json") for name, model in table.models.items()}
        show_json({"default": table.default, "models": rows})
    else:
        show_models(table)


def sheet(
    out: options.Dataset,
    images: Annotated[int, typer.Option(min=1, max=400, help="Images on the sheet.")] = 48,
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where it goes.", show_default="OUT-sheet.png"),
    ] = None,
) -> None:
    """Draw a contact sheet: images of a dataset with their prompts, as one PNG."""
    from producer.report import show
    from producer.sheet import write_sheet

    show(write_sheet(out, images, to))
