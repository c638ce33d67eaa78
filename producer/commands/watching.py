"""Commands about runs: status, watch, pause, cancel, resume, retry, prioritize, usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.teams import Priority
from producer.commands import options
from producer.commands.rendering import end, wait_for

if TYPE_CHECKING:
    from producer.control.installation import Installation
    from producer.control.status import Status

Sorting = Literal["team", "model", "run", "day"]


def status(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run id or an output location; else all runs."),
    ] = None,
    broker: options.Broker = None,
    as_json: options.Json = False,
) -> None:
    """Show where a run stands; without an argument, all runs that the broker knows."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.status import list_runs, look, quarantined
    from producer.report.console import say, show_json
    from producer.report.runs import show_statuses

    known = installation(load_settings(broker))
    statuses = list_runs(known) if run is None else [look(run, known)]
    if as_json:
        show_json(statuses if run is None else statuses[0])
    else:
        show_statuses(statuses)
        if aside := quarantined(known):
            say(f"{aside:,} messages were put aside: they were not ours (docs/14-security.md).")


def watch(
    run: options.Run,
    broker: options.Broker = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Follow a run to its end."""
    from jobs.output.storage import open_storage
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.status import look
    from producer.local.whole import Outcome, final_summary

    known = installation(load_settings(broker))
    found = look(run, known)
    if found.state == "finished":
        summary = final_summary(open_storage(found.out), found.run_id)
        end(Outcome.of_run(found.out, summary), quiet, as_json)
    else:
        wait_for(found.run_id, known, quiet, as_json)


def pause(run: options.Run, broker: options.Broker = None, as_json: options.Json = False) -> None:
    """Stop a run after the batches under way, to resume it later."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.stopping import pause as stop

    _show(stop(run, installation(load_settings(broker))), as_json)


def cancel(run: options.Run, broker: options.Broker = None, as_json: options.Json = False) -> None:
    """Stop a run after the batches under way. What is rendered stays; resume goes on."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.stopping import cancel as stop
    from producer.report.console import say

    stopped = stop(run, installation(load_settings(broker)))
    _show(stopped, as_json)
    say(f"imagemill resume {stopped.out} goes on.")


def resume(
    run: options.Run,
    wait: options.Wait = False,
    broker: options.Broker = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Send what is left of a run again, from storage: after cancel, a pause or a wiped broker."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.stopping import resume as restart

    known = installation(load_settings(broker))
    _show_begun(restart(run, known), known, wait, quiet, as_json)


def retry(
    run: options.Run,
    wait: options.Wait = False,
    broker: options.Broker = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Render the requests again that a finished run has no images of, as a new run in its place."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.stopping import retry as try_again

    known = installation(load_settings(broker))
    _show_begun(try_again(run, known), known, wait, quiet, as_json)


def prioritize(
    run: options.Run,
    priority: Annotated[Priority, typer.Argument(metavar="PRIORITY", help="low, normal, high.")],
    broker: options.Broker = None,
    as_json: options.Json = False,
) -> None:
    """Give a run another priority, from its next turn on."""
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.stopping import prioritize as change

    _show(change(run, priority, installation(load_settings(broker))), as_json)


def usage(
    locations: Annotated[
        list[str],
        typer.Argument(
            metavar="URI", help="Outputs of runs, stores of facades, or what lies above them."
        ),
    ],
    by: Annotated[Sorting, typer.Option(help="What a line is about.")] = "model",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
    as_json: options.Json = False,
) -> None:
    """Tell who used how much: device seconds, images, failures, bytes, from storage alone.

    A run's team is its --team, that of a batch or a call its key's.
    """
    from jobs.errors import UsageError
    from producer.report.console import show_json
    from producer.report.usage import show_csv, show_usage
    from producer.upkeep.usage import used

    if as_csv and as_json:
        raise UsageError("--csv and --json exclude each other", "Give one of them.")
    found = used(locations, by)
    if as_json:
        show_json([one.row() for one in found])
    elif as_csv:
        show_csv(found)
    else:
        show_usage(by, found)


def _show_begun(
    status: Status, known: Installation, wait: bool, quiet: bool, as_json: bool
) -> None:
    """A run that goes on: how it stands, or with wait its outcome, as submit shows it."""
    from producer.report.console import say

    if wait:
        say(f"run {status.run_id}")
        wait_for(status.run_id, known, quiet, as_json)
    elif as_json or not quiet:
        _show(status, as_json)


def _show(status: Status, as_json: bool) -> None:
    from producer.report.console import show_json
    from producer.report.runs import show_statuses

    if as_json:
        show_json(status)
    else:
        show_statuses([status])
