"""Commands that serve HTTP: serve, up, exporter, keys."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.teams import OPEN_TEAM, Priority
from producer.commands import options

if TYPE_CHECKING:
    from jobs.settings import Settings

Store = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="Where images, files and batches are kept: a folder or s3://.",
        show_default="IMAGEMILL_STORE",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks one.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen to other machines although there are no keys.")
]


def serve(
    store: Store = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    insecure: Insecure = False,
    log_format: options.LogFormat = None,
) -> None:
    """Answer HTTP calls with the workers of a running installation, until Ctrl-C."""
    from jobs.broker.connection import check_kind
    from producer.api.server import run_server

    settings = _settings(store, broker, models_file, log_format)
    check_kind(settings)
    run_server(settings, host, port, insecure)


def up(
    store: Store = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models to serve, separated by commas. The first is loaded at once.",
            show_default="all of the models table but null",
        ),
    ] = None,
    devices: options.Devices = "auto",
    workers: options.Workers = None,
    models_file: options.ModelsFile = None,
    insecure: Insecure = False,
    log_format: options.LogFormat = None,
) -> None:
    """Start all on this machine, until Ctrl-C: private broker, workers, HTTP facade."""
    from jobs.broker.connection import without_password
    from jobs.logs import log_to_stderr
    from jobs.models.table import load_models
    from producer.api.server import check_exposure, run_server
    from producer.local.embedded import Crew
    from producer.local.sharing import Guest, HostLeft, shared
    from producer.report.console import announce

    settings = _settings(store, None, models_file, log_format)
    log_to_stderr(settings.log_format)
    say = partial(announce, form=settings.log_format)
    check_exposure(settings, host, insecure)
    table = load_models(settings.models)
    served = models.split(",") if models else table.usual
    for name in served:  # before anything is started
        table.route(name)
    while True:
        try:
            with shared(settings, Crew(devices, workers)) as children:
                if isinstance(children, Guest):
                    say("Another imagemill up works on this store: its broker is used")
                children.serve(served)
                say(f"Its broker: --broker {without_password(children.settings.broker)}")
                run_server(children.settings, host, port, insecure, children.check)
                children.stop()  # they store their batches, and write what calls used
            return
        except HostLeft as left:
            say(f"{left.message}; this one goes on with a broker of its own")


def exporter(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 9464,
    broker: options.Broker = None,
    models_file: options.ModelsFile = None,
    log_format: options.LogFormat = None,
) -> None:
    """Tell Prometheus what the installation does, until Ctrl-C. It asks for no token."""
    from jobs.logs import log_to_stderr
    from jobs.models.table import load_models
    from jobs.settings import load_settings
    from producer.control.installation import installation
    from producer.control.metrics import make_registry, serve_metrics
    from producer.report.console import announce

    settings = load_settings(broker, models_file, log_format)
    log_to_stderr(settings.log_format)
    registry = make_registry(installation(settings), load_models(settings.models))

    def ready(url: str) -> None:
        announce(f"Ready: {url} (Ctrl-C stops)", settings.log_format)

    serve_metrics(registry, host, port, ready)


def make_keys() -> typer.Typer:
    """The command `keys` with its subcommands."""
    keys = typer.Typer(no_args_is_help=True, help="Keys of the HTTP facade.")
    for command in (create, list_, revoke):
        keys.command(command.__name__.rstrip("_"))(command)
    return keys


def create(
    team: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A team of the key; several may be named."),
    ] = None,
    priority: Annotated[
        Priority, typer.Option(help="The highest that batches of the key may have.")
    ] = "normal",
) -> None:
    """Make a key and print its token, which is shown only now."""
    from producer.api.access.keys import create_key
    from producer.report.console import say, show

    key, token = create_key(_settings().keys_file, team or [OPEN_TEAM], priority)
    say(f"key {key.id} of {', '.join(key.teams)}; its token:")
    show(token)


def list_(as_json: options.Json = False) -> None:
    """Show all keys of the keys file: id, when it was made, highest priority, teams."""
    from datetime import UTC, datetime

    from producer.api.access.keys import read_keys
    from producer.report.console import say, show, show_json

    keys = read_keys(_settings().keys_file)
    if as_json:
        names = ("id", "teams", "created_at", "priority")
        show_json([{name: getattr(key, name) for name in names} for key in keys])
        return
    if not keys:
        say("There are no keys: imagemill keys create makes one.")
    for key in keys:
        made = datetime.fromtimestamp(key.created_at, UTC)
        show(f"{key.id}  {made:%Y-%m-%d}  {key.priority:6}  {', '.join(key.teams)}")


def revoke(key: Annotated[str, typer.Argument(metavar="ID", help="A key's id.")]) -> None:
    """Remove a key; running facades refuse it from then on."""
    from producer.api.access.keys import revoke_key
    from producer.report.console import say

    revoke_key(_settings().keys_file, key)
    say(f"key {key} is revoked")


def _settings(
    store: str | None = None,
    broker: str | None = None,
    models_file: options.ModelsFile = None,
    log_format: options.LogFormat = None,
) -> Settings:
    from jobs.settings import load_settings

    settings = load_settings(broker, models_file, log_format)
    return settings.model_copy(update={"store": store}) if store is not None else settings
