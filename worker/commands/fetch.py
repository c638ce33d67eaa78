"""`imagemill models fetch`: weights onto this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from jobs.commands import Command
from jobs.errors import UsageError
from jobs.models.table import ModelTable, load_models
from jobs.output.dataset import read_summary
from jobs.output.plan import Plan, read_plan
from jobs.output.storage import open_storage
from jobs.settings import load_settings
from worker.commands import options
from worker.commands.ending import explained

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Names of the models table, or repositories.",
            show_default="all of the models table",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="OUT", help="An output location: the commits its run was planned with."
        ),
    ] = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
) -> None:
    """Download weights to this machine: only the files that are loaded, each once.

    What models.toml does not pin is the newest commit, and this machine stays with it. With --for
    it is the one that a run was planned with, beside the one that this machine stays with. Gated
    repositories need HF_TOKEN. Run again, it goes on where it stopped.
    """
    with explained():
        table = load_models(load_settings(models=models_file).models)
        plan = _plan(out) if out else None
        usual = [*plan.fingerprints] if plan else table.usual
        for name in names or usual:
            _fetch(name, table, plan.commits if plan else None, quiet)


def _plan(out: str) -> Plan:
    storage = open_storage(out)
    summary = read_summary(storage)
    plan = read_plan(storage, summary.run_id) if summary else None
    if plan is None:
        raise UsageError(f"{storage.uri} has no run", "Name the output location of one.")
    return plan


def _fetch(name: str, table: ModelTable, planned: Mapping[str, str] | None, quiet: bool) -> None:
    model = table.get(table.route(name).model)
    from worker.pipelines.fetching import fetch_model  # takes seconds: names are checked before

    if quiet:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    for source, commit in fetch_model(table, model, planned).items():
        if not quiet:
            typer.echo(f"{name}: {source} {commit or 'is a folder here'}")


if __name__ == "__main__":
    app(prog_name="imagemill models fetch")
