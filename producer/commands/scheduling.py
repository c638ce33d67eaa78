"""Commands of what is submitted by itself: schedule and its subcommands, inbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.teams import OPEN_TEAM
from producer.commands import options

if TYPE_CHECKING:
    from jobs.settings import Settings
    from producer.schedules.firing import Firing
    from producer.schedules.journal import Journal
    from producer.schedules.news import News
    from producer.schedules.table import ScheduleTable

SchedulesFile = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="A schedules.toml.",
        show_default="IMAGEMILL_SCHEDULES, or schedules.toml",
        rich_help_panel=options.DEPLOYMENT,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A schedule.")]
Count = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="So many of each.")]

WAIT_SECONDS = 30.0  # for a scheduler that plans a run of the same schedule


def make_schedule() -> typer.Typer:
    """The command `schedule` with its subcommands."""
    schedule = typer.Typer(no_args_is_help=True, help="Submit manifests by the clock.")
    for command in (run, list_, next_, run_now, pause, resume, history):
        schedule.command(command.__name__.rstrip("_").replace("_", "-"))(command)
    return schedule


def run(
    schedules_file: SchedulesFile = None,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    log_format: options.LogFormat = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Submit what is due, until Ctrl-C. Run as many copies as you like.

    With --json, what happens is a line of JSON each on stdout.
    """
    from jobs.settings import load_settings
    from producer.report.console import announce
    from producer.schedules.scheduler import Scheduler

    settings = load_settings(broker, models_file, log_format)
    tell = _teller(settings, quiet, as_json)
    scheduler = Scheduler(schedules_file or settings.schedules, _firing(settings, tell))
    try:
        scheduler.run()
    except KeyboardInterrupt:
        announce(
            "Stopped. Runs under way go on; what becomes due meanwhile: docs/13-schedules.md.",
            settings.log_format,
        )


def list_(schedules_file: SchedulesFile = None, as_json: options.Json = False) -> None:
    """Show all schedules: when they are due next, what came of the last time, which are paused."""
    from producer.report.console import show_json
    from producer.report.schedules import show_schedules
    from producer.schedules.history import overview
    from producer.schedules.times import wall_clock

    table = _load(schedules_file)
    found = [overview(_journal(table, name), wall_clock()) for name in table.schedules]
    if as_json:
        show_json(found)
    else:
        show_schedules(found)


def next_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A schedule; else all of them.")
    ] = None,
    count: Count = 5,
    schedules_file: SchedulesFile = None,
    as_json: options.Json = False,
) -> None:
    """Show when schedules are due next, and where their runs would go."""
    from producer.report.console import show_json
    from producer.report.schedules import show_upcoming
    from producer.schedules.history import upcoming
    from producer.schedules.times import wall_clock

    table = _load(schedules_file)
    names = [table.get(name).name] if name else list(table.schedules)
    found = [one for n in names for one in upcoming(table.get(n), wall_clock(), count)]
    if as_json:
        show_json(found)
    else:
        show_upcoming(found)


def run_now(
    name: Name,
    wait: options.Wait = False,
    schedules_file: SchedulesFile = None,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Submit a schedule's manifest now, paused or not, and print the run's id."""
    from jobs.errors import TransientError
    from jobs.settings import load_settings
    from producer.commands.rendering import wait_for
    from producer.control.locks import locked
    from producer.control.status import look
    from producer.report.console import say, show, show_json
    from producer.report.schedules import say_news
    from producer.schedules.scheduler import lock_name
    from producer.schedules.templates import key
    from producer.schedules.times import wall_clock

    settings = load_settings(broker, models_file)
    table = _load(schedules_file, settings)
    firing = _firing(settings, say_news)
    table.check_models(firing.table)
    journal, known = _journal(table, name), firing.known
    lock = lock_name(known.runs.prefix, journal)
    with known.reached(), locked(known.runs.client, lock, wait=WAIT_SECONDS) as mine:
        if not mine:
            raise TransientError(
                f"schedule {name} is being seen to by a scheduler, which takes long",
                "Try again in a minute.",
            )
        fire = firing.fire(journal, key(wall_clock()))
    if wait:
        say(f"run {fire.run_id}")
        wait_for(fire.run_id, known, quiet, as_json)
    elif as_json:
        show_json(look(fire.run_id, known))
    else:
        show(fire.run_id)


def pause(
    name: Name,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for others.")] = "by hand",
    schedules_file: SchedulesFile = None,
    as_json: options.Json = False,
) -> None:
    """Begin no more runs of a schedule; those under way go on."""
    from jobs.output.dataset import now
    from producer.schedules.journal import Pause

    table = _load(schedules_file)
    _journal(table, name).pause(Pause(now(), reason))
    _show(table, name, as_json)


def resume(name: Name, schedules_file: SchedulesFile = None, as_json: options.Json = False) -> None:
    """Have a paused schedule go on; what was due meanwhile is not made up."""
    from producer.schedules.times import wall_clock

    table = _load(schedules_file)
    _journal(table, name).resume(wall_clock())
    _show(table, name, as_json)


def history(
    name: Name,
    count: Count = 20,
    schedules_file: SchedulesFile = None,
    as_json: options.Json = False,
) -> None:
    """Show what became of a schedule's nominal times, newest first."""
    from producer.report.console import show_json
    from producer.report.schedules import show_history
    from producer.schedules.history import entries

    found = entries(_journal(_load(schedules_file), name), count)
    if as_json:
        show_json(found)
    else:
        show_history(found)


@options.spread
def inbox(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="Where manifests arrive: a folder or s3://.")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="TEMPLATE", help="Where each dataset goes; holds {name}."
        ),
    ],
    requests: options.Requests,
    team: options.Team = OPEN_TEAM,
    priority: options.Rank = "normal",
    done: Annotated[
        bool, typer.Option("--done", help="Take only manifests with a NAME.done beside them.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Between two looks.")
    ] = 5.0,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    log_format: options.LogFormat = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Submit each manifest that arrives in a folder or bucket, until Ctrl-C.

    A manifest is NAME.jsonl, .jsonl.gz, .csv or .tsv; write it under another name, then rename it.
    It goes to accepted/ or rejected/, with a report. Run as many copies as you like. With --json,
    what happens is a line of JSON each on stdout.
    """
    from dataclasses import replace

    from jobs.models.table import load_models
    from jobs.output.storage import open_storage
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.report.console import announce
    from producer.schedules.inbox import Inbox
    from producer.schedules.news import News

    settings = load_settings(broker, models_file, log_format)
    # Strangers may write there: they name neither repositories nor folders, nor files of ours.
    table = replace(load_models(settings.models), closed=True)
    wanted = replace(requests.planned(settings, table), local_files=False)
    tell = _teller(settings, quiet, as_json)
    watched = Inbox(
        open_storage(uri), out, installation(settings), table, wanted, tell, done,
        team=options.team_of(team, settings), priority=priority,
    )  # fmt: skip
    if once:
        watched.look()
        return
    tell(News(watched.storage.uri, "watched", f"every {every:g} s"))
    try:
        watched.watch(every)
    except KeyboardInterrupt:
        announce(
            "Stopped. What was taken on is taken on again by the next watcher.", settings.log_format
        )


def _load(schedules_file: str | None, settings: Settings | None = None) -> ScheduleTable:
    from jobs.settings import load_settings
    from producer.schedules.table import load_schedules

    return load_schedules(schedules_file or (settings or load_settings()).schedules)


def _journal(table: ScheduleTable, name: str) -> Journal:
    from producer.schedules.journal import Journal

    return Journal(table.state, table.get(name))


def _firing(settings: Settings, tell: Callable[[News], None]) -> Firing:
    from jobs.models.table import load_models
    from producer.control.installation import installation
    from producer.schedules.firing import Firing

    stores = tuple(sorted(settings.input_stores))
    return Firing(installation(settings), load_models(settings.models), stores, tell)


def _teller(settings: Settings, quiet: bool, as_json: bool) -> Callable[[News], None]:
    """Who is told what happens: stdout (--json), nobody, people, or the log where it is JSON."""
    from jobs.logs import log_to_stderr
    from producer.report.console import show_event
    from producer.report.schedules import log_news, say_news

    log_to_stderr(settings.log_format)
    if as_json:
        return show_event
    if quiet:
        return _nothing
    return log_news if settings.log_format == "json" else say_news


def _nothing(_: News) -> None:
    pass


def _show(table: ScheduleTable, name: str, as_json: bool) -> None:
    from producer.report.console import show_json
    from producer.report.schedules import show_schedules
    from producer.schedules.history import overview
    from producer.schedules.times import wall_clock

    found = overview(_journal(table, name), wall_clock())
    if as_json:
        show_json(found)
    else:
        show_schedules([found])
