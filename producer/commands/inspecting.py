"""Commands that render nothing: plan, models, sheet, page."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.errors import Exit
from producer.commands import options


@options.spread
def plan(
    manifest: options.Manifest,
    requests: options.Requests,
    limit: options.Limit = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Check and count a manifest, estimate its time; enqueue nothing.

    Exits with 2 if run and submit, with the same options, would refuse it, else with 1 if nobody
    can tell now what a model's weights are. Shows the first 20 errors, and warnings; with --json,
    the first 10,000.
    """
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.control.progress import display
    from producer.planning.rates import estimate, rates_file, read_rates
    from producer.planning.survey import LISTED_ERRORS, SHOWN_ERRORS, survey
    from producer.report.console import show_json
    from producer.report.errors import show_error
    from producer.report.runs import show_survey

    settings = load_settings(models=models_file)
    table = load_models(settings.models)
    wanted = requests.planned(settings, table, limit)
    most = LISTED_ERRORS if as_json else SHOWN_ERRORS
    with display(quiet) as shown:
        found = survey(manifest, table, wanted, shown, most)
    rates = read_rates(rates_file())
    if as_json:
        groups = [
            key._asdict()
            | {"images": tally.images, "guidance_scale": tally.guidance}
            | asdict(estimate(key, tally.images, table, rates))
            for key, tally in found.tallies.items()
        ]
        faults, doubts = found.faults, found.doubts
        shown_json = {
            "lines": found.lines,
            "requests": found.requests,
            "further": found.further,
            "invalid": faults.lines,
            "reasons": faults.reasons,
            "errors": [asdict(one) for one in faults.first],
            "doubtful": doubts.lines,
            "warnings": [asdict(one) for one in doubts.first],
            "unidentified": str(found.unidentified) if found.unidentified else None,
            "groups": groups,
        }
        show_json(shown_json)
    elif not quiet:
        show_survey(found, table, rates)
    if found.unidentified:
        show_error(found.unidentified)
    if found.is_refused:
        raise typer.Exit(Exit.USAGE)
    if found.unidentified:
        raise typer.Exit(Exit.FAILED)


def make_models() -> typer.Typer:
    """The command `models` with its subcommands."""
    cli = typer.Typer(help="Show the models table and what each model can do.")
    cli.callback(invoke_without_command=True)(models)
    cli.command("list")(list_weights)
    cli.command()(inspect)
    for command in (fetch, tune):  # their options are the worker's own; --help included
        cli.command(
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )(command)
    return cli


def models(
    context: typer.Context, models_file: options.ModelsFile = None, as_json: options.Json = False
) -> None:
    """Show the models table and what each model can do."""
    if context.invoked_subcommand:
        return
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.report.console import show_json
    from producer.report.models import show_models

    table = load_models(load_settings(models=models_file).models)
    if as_json:
        rows = {name: model.model_dump(mode="json") for name, model in table.models.items()}
        show_json({"default": table.default, "models": rows, "aliases": table.aliases})
    else:
        show_models(table)


def list_weights(models_file: options.ModelsFile = None, as_json: options.Json = False) -> None:
    """Show where the weights of each model are on this machine, and how large they are."""
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.report.console import show_json
    from producer.report.models import show_weights
    from producer.upkeep.weights import find_weights

    found = list(find_weights(load_models(load_settings(models=models_file).models)))
    if as_json:
        show_json(found)
    else:
        show_weights(found)


def inspect(
    repo: Annotated[
        str,
        typer.Argument(metavar="REPO", help="A repository, a folder, or a name of the table."),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Commit, tag or branch of a repository.")
    ] = None,
    models_file: options.ModelsFile = None,
    as_json: options.Json = False,
) -> None:
    """Print a row of models.toml for a pipeline, from its JSON files alone, not the weights."""
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.report.console import show, show_json
    from producer.report.models import toml_row
    from producer.upkeep.inspection import inspect_source

    table = load_models(load_settings(models=models_file).models)
    if model := table.models.get(repo):
        _, row = inspect_source(str(table.source(model)), revision or model.revision)
        name = repo
    else:
        name, row = inspect_source(repo, revision)
    if as_json:
        show_json(row)
    else:
        show(toml_row(name, row))


def fetch(context: typer.Context) -> None:
    """Download weights to this machine: only the files that are loaded. Options: fetch --help."""
    # A process of its own, because this one must never import torch.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.commands.fetch", *context.args])


def tune(context: typer.Context) -> None:
    """Measure how many requests a pipeline call is best given. Options: tune --help."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.commands.tuning", *context.args])


def sheet(
    out: options.Dataset,
    images: Annotated[
        int, typer.Option(min=1, max=400, help="Images on the sheet, evenly over the dataset.")
    ] = 48,
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where it goes.", show_default="OUT-sheet.png"),
    ] = None,
) -> None:
    """Draw a contact sheet: images of a dataset, their prompts, models, seeds and inputs; a PNG."""
    from producer.report.console import show
    from producer.upkeep.sheet import write_sheet

    show(write_sheet(out, images, to))


def page(
    out: options.Output,
    images: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="The first so many.", show_default="all"),
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a site of a run's pictures into its folder, which opens without a server.

    Of a run that has not finished: of the pictures that it has by now.
    """
    from producer.control.progress import display
    from producer.report.console import say, show, show_json
    from producer.upkeep.site import write_site

    with display(quiet) as shown:
        site = write_site(out, shown.exporting, images)
    if as_json:
        show_json(site)
        return
    show(site.index)
    if site.state != "finished":
        say(f"The run has not finished: these are the {site.images:,} images that it has by now.")
    if site.unreadable:
        say(f"{site.unreadable:,} images are missing or damaged: imagemill fsck {out}")
