"""Commands that render: run, submit, worker, verify."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jobs.errors import Exit, FatalError, TransientError, UsageError
from jobs.teams import OPEN_TEAM
from producer.commands import options

if TYPE_CHECKING:
    from jobs.settings import Settings
    from producer.control.installation import Installation
    from producer.local.whole import Outcome


@options.spread
def run(
    manifest: options.Manifest,
    out: options.Out,
    requests: options.Requests,
    limit: options.Limit = None,
    team: options.Team = OPEN_TEAM,
    devices: options.Devices = "auto",
    workers: options.Workers = None,
    models_file: options.ModelsFile = None,
    page: Annotated[
        bool, typer.Option("--page", help="Show it in a browser meanwhile; prints the address.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Render a manifest: the whole job. Run again, it renders only what is missing."""
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.control.progress import display
    from producer.local.embedded import Crew
    from producer.local.whole import render
    from producer.planning.submission import Job
    from producer.report.console import said_if_stopped, say

    settings = load_settings(models=models_file)
    table = load_models(settings.models)
    wanted = requests.planned(settings, table, limit)
    job = Job(manifest, out, table, wanted, team=options.team_of(team, settings))
    stopped = "Stopped. What is rendered is stored: run the same command again to go on."
    with said_if_stopped(stopped), display(quiet) as shown:
        told = (lambda address: say(f"The page: {address}")) if page else None
        outcome = render(job, settings, Crew(devices, workers), shown, told)
    end(outcome, quiet, as_json)


@options.spread
def submit(
    manifest: options.Manifest,
    out: options.Out,
    requests: options.Requests,
    limit: options.Limit = None,
    team: options.Team = OPEN_TEAM,
    priority: options.Rank = "normal",
    wait: options.Wait = False,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Send a manifest to a running installation and print the run's id, also of a finished run."""
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.control.entry import enter
    from producer.control.installation import installation
    from producer.control.progress import display
    from producer.control.status import look
    from producer.local.whole import Outcome
    from producer.planning.submission import Job, identify, launch
    from producer.report.console import say, show, show_json

    started = time.monotonic()
    settings = load_settings(broker, models_file)
    table = load_models(settings.models)
    wanted = requests.planned(settings, table, limit)
    known = installation(settings)
    known.ping()
    job = Job(manifest, out, table, wanted, team=options.team_of(team, settings), priority=priority)
    submission = identify(job)
    storage, summary = submission.storage, submission.finished
    if submission.done is None:
        with display(quiet) as shown:
            plan = enter(known, submission, shown)
        with known.reached():
            summary = launch(plan, storage, known.runs, known.dispatcher)
    run_id = submission.run_id
    if not as_json:
        show(run_id)
    elif wait:
        say(f"run {run_id}")
    else:
        show_json(look(storage.uri if summary else run_id, known))
    if summary:
        outcome = Outcome(storage.uri, summary, False, time.monotonic() - started)
        end(outcome, quiet or (as_json and not wait), as_json and wait, say)
    elif wait:
        wait_for(run_id, known, quiet, as_json, say)
    elif not as_json:
        _warn(run_id, known)


def wait_for(
    run_id: str,
    known: Installation,
    quiet: bool,
    as_json: bool,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Follow a run of an installation, then show its outcome.

    tell: what shows it to people, a line at a time; on stdout if not given.
    """
    from jobs.output.storage import open_storage
    from producer.control.progress import display, follow
    from producer.local.whole import Outcome, final_summary
    from producer.report.console import said_if_stopped, say

    _warn(run_id, known)
    stopped = f"The run goes on: imagemill watch {run_id}, or imagemill cancel {run_id}."
    with known.reached(), said_if_stopped(stopped), display(quiet) as shown:
        progress = follow(known.runs, run_id, shown)
    if progress.state == "cancelled":
        say(f"run {run_id} was cancelled; imagemill resume {progress.out} goes on")
        raise typer.Exit(Exit.FAILED)
    summary = final_summary(open_storage(progress.out), run_id)
    end(Outcome.of_run(progress.out, summary), quiet, as_json, tell)


def _warn(run_id: str, known: Installation) -> None:
    """Say so if a run waits for workers that nobody has started."""
    from producer.control.status import look
    from producer.report.console import say

    if unserved := look(run_id, known).unserved:
        names = ",".join(unserved)
        say(f"No worker serves {names} yet. To start one: imagemill worker --models {names}")


def end(
    outcome: Outcome, quiet: bool, as_json: bool, tell: Callable[[str], None] | None = None
) -> None:
    """Show an outcome; exits with 1 if a request has no image, or an image not all its scores.

    tell: as of wait_for.
    """
    from producer.report.console import show
    from producer.report.runs import show_outcome, show_outcome_json

    if as_json:
        show_outcome_json(outcome)
    elif not quiet:
        show_outcome(outcome, tell or show)
    if outcome.summary.without_image or outcome.summary.unscored:
        raise typer.Exit(Exit.FAILED)


def worker(context: typer.Context) -> None:
    """Render what an installation has queued: a worker a device. Options: worker --help."""
    # A process of its own, because this one must never import torch.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker", *context.args])


def score(context: typer.Context) -> None:
    """Score finished images, render nothing: columns for metadata.jsonl. Options: score --help."""
    # A process of its own, because this one must never import torch.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.commands.score", *context.args])


def verify(
    out: options.Dataset,
    sample: Annotated[int, typer.Option(min=1, metavar="N", help="Images to render again.")] = 16,
    count_in: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Redis of an installation, whose metrics are to tell the verdict.",
            rich_help_panel=options.DEPLOYMENT,
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Until Ctrl-C, have the workers of the installation (--broker) render another "
            "sample so often, after all other work; its metrics tell the verdicts.",
            rich_help_panel=options.DEPLOYMENT,
        ),
    ] = None,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Render a sample of finished images again, compare bytes. Exits with 1 if any differ."""
    from jobs.models.table import load_models
    from jobs.settings import load_settings

    if every:
        _keep_verifying(out, sample, every, load_settings(broker, models_file), quiet, as_json)
    from producer.control.installation import installation
    from producer.control.progress import display
    from producer.report.checks import show_verdict
    from producer.report.console import show_json
    from producer.upkeep.verification import count_verdict
    from producer.upkeep.verification import verify as compare

    if broker:
        raise UsageError("--broker goes with --every", "--count-in counts a single verdict.")
    settings = load_settings(models=models_file)
    with display(quiet) as shown:
        verdict = compare(out, sample, settings, load_models(settings.models), shown)
    if count_in:
        count_verdict(installation(load_settings(count_in)), verdict)
    if as_json:
        show_json(verdict)
    elif not quiet:
        show_verdict(verdict)
    if verdict.differences:
        raise typer.Exit(Exit.FAILED)


def _keep_verifying(
    out: str, sample: int, every: float, settings: Settings, quiet: bool, as_json: bool
) -> NoReturn:
    """Verify by an installation's workers until Ctrl-C; what passes is told and tried again."""
    from jobs.models.table import load_models
    from producer.control.installation import installation
    from producer.report.checks import show_verdict
    from producer.report.console import say, show_event
    from producer.upkeep.verification import verify_by

    known, table = installation(settings), load_models(settings.models)
    try:
        while True:
            started = time.monotonic()
            try:
                # By the clock: another copy, or this one started again, draws others as well.
                verdict = verify_by(known, out, sample, time.time_ns(), settings, table)
            except (TransientError, FatalError) as error:
                say(str(error))
            else:
                if as_json:
                    show_event(verdict)
                elif not quiet or verdict.differences:
                    show_verdict(verdict)
            time.sleep(max(0.0, every - (time.monotonic() - started)))
    except KeyboardInterrupt:
        say("Stopped.")
        raise typer.Exit(Exit.DONE) from None
