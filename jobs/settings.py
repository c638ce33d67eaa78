"""Facts of a deployment, read once at an entry point and passed down.

Sources, first wins: command-line options, `IMAGEMILL_*` environment variables, files of that name
in lower case in /run/secrets, `imagemill.toml` in the working directory (or the file that
`IMAGEMILL_SETTINGS` names), the defaults below.
"""

from __future__ import annotations

import os
import re
import tomllib
from importlib.resources.abc import Traversable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

import orjson
from platformdirs import user_config_path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from jobs import mistakes
from jobs.errors import UsageError
from jobs.logs import LogFormat
from jobs.teams import TEAM
from jobs.toml import parse_toml

# Where Compose and Kubernetes put them; `imagemill_api_keys` is the setting api_keys.
SECRETS = Path("/run/secrets")
SENTINELS = ("sentinel", "sentinels")  # schemes of broker URLs: plain, and by TLS
SENTINEL_PORT = 26379

_SECRET = frozenset(("api_keys", "broker_secret", "metrics_token"))
_UNSHOWN = _SECRET | {"broker"}  # which may hold a password
_PREFIX = "IMAGEMILL_"
_RATE = "6000/minute"


def _check_public_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://host or https://host, with a path where there is one")
    return url.rstrip("/")


def _check_collector(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be http://host:port or https://host:port")
    return url


def _check_prefix(prefix: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", prefix):
        raise ValueError("must be letters, digits and any of _ . : -")
    return prefix


def _check_team(name: str) -> str:
    if not TEAM.fullmatch(name):
        raise ValueError("is no team's name: up to 64 letters, digits, - and _")
    return name


def _check_rate(rate: str) -> str:
    if rate != _RATE:
        from limits import parse_many  # a tenth of the time of all settings, for whoever has it

        try:
            is_one = len(parse_many(rate)) == 1
        except ValueError:
            is_one = False
        if not is_one:
            raise ValueError("must be a number of requests in a time: 6000/minute, 5/10 second")
    return rate


def _check_proxy(network: str) -> str:
    try:
        ip_network(network)
    except ValueError as error:
        raise ValueError(f"is no address and no network: {error}") from error
    return network


def sentinel_hosts(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of sentinel://host:port,host:port. Raises ValueError if one is none."""
    places = [urlsplit(f"//{one}") for one in urlsplit(url).netloc.rpartition("@")[2].split(",")]
    if not all(place.hostname and place.port != 0 for place in places):
        raise ValueError("names a sentinel without a host, or with port 0")
    return [(str(place.hostname), place.port or SENTINEL_PORT) for place in places]


def _check_broker(url: str) -> str:
    parts = urlsplit(url)
    if "cluster" in parts.scheme:
        raise ValueError(
            "cannot be a Redis Cluster, which keeps keys of one operation on several servers: take "
            "one server with cluster mode disabled, or sentinel:// for a primary and its replicas"
        )
    if parts.scheme in SENTINELS:
        if not sentinel_hosts(url) or not dict(parse_qsl(parts.query)).get("master_name"):
            raise ValueError("must name its group: sentinel://host,host,host/0?master_name=NAME")
        return url
    try:
        port = parts.port
    except ValueError:  # which would show the beginning of a password
        raise ValueError("has no port; / and @ of a password are %2F and %40") from None
    known = parts.scheme in ("redis", "rediss") and parts.hostname and port != 0
    if not known and not (parts.scheme == "redis+socket" and parts.path):
        raise ValueError(
            "must be redis://host, rediss://host, redis+socket:///path or "
            "sentinel://host,host,host/0?master_name=NAME"
        )
    return url


class Team(BaseModel):
    """What a team may have of an installation.

    weight: its share of the devices against others'; device_seconds_a_day: of the runs that it
    submits in a day (UTC), as estimated; images_in_flight: without a record, of all its runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    device_seconds_a_day: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    images_in_flight: Annotated[int, Field(ge=0)] | None = None


class Settings(BaseSettings):
    """Deployment settings; each field is also the environment variable `IMAGEMILL_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="IMAGEMILL_", frozen=True, extra="forbid")

    broker: Annotated[
        str,
        Field(description="Redis URL: redis://, rediss://, redis+socket:///path or sentinel://"),
        AfterValidator(_check_broker),
    ] = "redis://127.0.0.1:6379/0"
    broker_password_file: Annotated[
        Path | None,
        Field(description="Its password by TCP, read for each connection: it may be renewed"),
    ] = None
    key_prefix: Annotated[
        str, Field(description="Prefix of every Redis key"), AfterValidator(_check_prefix)
    ] = "imagemill:"
    broker_secret: Annotated[
        SecretStr | None,
        Field(description="Seals what producers and workers write to a broker that others share"),
    ] = None
    models: Annotated[
        Path | None, Field(description="A models.toml; the built-in one when not given")
    ] = None
    visibility_timeout: Annotated[
        float, Field(ge=5, le=3600, description="Seconds until a dead host's chunk runs elsewhere")
    ] = 12.0
    shutdown_timeout: Annotated[
        float, Field(ge=0, le=3600, description="Seconds a stopping worker may finish its batch in")
    ] = 20.0
    batch_seconds: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Seconds until a batch counts as hung and its process ends",
        ),
    ] = 900.0
    traces: Annotated[
        Annotated[str, AfterValidator(_check_collector)] | None,
        Field(description="Collector of OpenTelemetry traces, OTLP/HTTP."),
    ] = None
    log_format: Annotated[
        LogFormat, Field(description="What processes write to stderr: text, or json a line")
    ] = "text"
    models_kept: Annotated[
        int, Field(ge=1, description="Models that stay loaded in a device process")
    ] = 2
    upload_threads: Annotated[
        int, Field(ge=1, le=256, description="Threads that encode and store images, a worker")
    ] = 8
    store: Annotated[
        str | None,
        Field(description="Where the facade keeps images, files and batches: a URI"),
    ] = None
    schedules: Annotated[str, Field(description="The schedules file: a path or a storage URI")] = (
        "schedules.toml"
    )
    api_keys: Annotated[
        SecretStr | None,
        Field(description="Keys of the HTTP facade: TOKEN or TOKEN@team+team, separated by commas"),
    ] = None
    metrics_token: Annotated[
        SecretStr | None, Field(description="What whoever reads /metrics of the facade must send")
    ] = None
    keys_file: Path = Field(
        default_factory=lambda: user_config_path("imagemill") / "keys.json",
        description="What `imagemill keys` writes: hashes of keys and their teams",
    )
    signing_file: Path = Field(
        default_factory=lambda: user_config_path("imagemill") / "signing.key",
        description="Secret that signs URLs; made when absent, shared by all facades",
    )
    public_url: Annotated[
        Annotated[str, AfterValidator(_check_public_url)] | None,
        Field(description="The facade's URL as its callers write it, where a proxy changes it"),
    ] = None
    trusted_proxies: Annotated[
        frozenset[Annotated[str, AfterValidator(_check_proxy)]],
        Field(description="Addresses or networks whose X-Forwarded-For and -Proto are believed"),
    ] = frozenset()
    call_seconds: Annotated[
        float, Field(gt=0, le=3600, description="Seconds until an interactive call has failed")
    ] = 120.0
    drain_seconds: Annotated[
        float | None,
        Field(ge=0, le=3600, description="Seconds a stopping facade finishes calls in"),
    ] = None
    model_calls: Annotated[
        int, Field(ge=1, description="Interactive calls that may wait for a model")
    ] = 256
    team_calls: Annotated[
        int, Field(ge=1, description="Interactive calls of a team that may wait")
    ] = 64
    team_rate: Annotated[
        str,
        Field(description="Requests of a team, as the limits library writes it: 100/second"),
        AfterValidator(_check_rate),
    ] = _RATE
    body_bytes: Annotated[
        int, Field(ge=1024, description="Bytes that the body of an HTTP request may have")
    ] = 136 * 2**20  # two images of 50 MiB as base64
    file_bytes: Annotated[
        int, Field(ge=1024, description="Bytes that an uploaded file may have")
    ] = 200 * 2**20
    teams: Annotated[
        dict[Annotated[str, AfterValidator(_check_team)], Team],
        Field(description="What teams may have of the installation, by their names"),
    ] = Field(default_factory=dict)
    input_hosts: Annotated[
        frozenset[str],
        Field(description="If any: the only hosts that input URLs may name, private ones included"),
    ] = frozenset()
    input_stores: Annotated[
        frozenset[str],
        Field(description="Beginnings of the storage URIs that inputs may name: s3://photos/"),
    ] = frozenset()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        variables, toml = _Variables(settings_cls), _Toml(settings_cls, _file())
        if not SECRETS.is_dir():
            return init_settings, variables, toml
        return init_settings, variables, _Secrets(settings_cls, SECRETS), toml

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these same settings, but no secrets."""
        values = self.model_dump(mode="json", exclude_none=True, exclude=set(_SECRET))
        return {
            _variable(name): value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in values.items()
        }


class _JsonSource(PydanticBaseSettingsSource):
    """A source whose tables and lists are JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


class _Variables(_JsonSource, EnvSettingsSource):
    pass


class _Secrets(_JsonSource, SecretsSettingsSource):
    pass


class _Toml(TomlConfigSettingsSource):
    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return parse_toml(file_path.read_text("utf-8"))


def load_settings(
    broker: str | None = None, models: Path | None = None, log_format: LogFormat | None = None
) -> Settings:
    """Settings with the given options on top.

    Raises:
        UsageError: settings have a wrong type or range, their names are unknown, or the file is
            broken or cannot be read; each is named with where it was said and what is allowed.
    """
    given = {"broker": broker, "models": models, "log_format": log_format}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}

    def source(name: str) -> str:
        """Where a setting was said."""
        if name in options:
            return {"models": "--models-file"}.get(name, f"--{name.replace('_', '-')}")
        if any(variable.upper() == _variable(name) for variable in os.environ):
            return _variable(name)
        secret = SECRETS / _variable(name).lower()
        return str(secret if secret.exists() else _file())

    known = list(Settings.model_fields)
    try:
        settings = Settings(**options)
    except ValidationError as error:
        fields = {"": known, "teams": list(Team.model_fields)}
        raise mistakes.of_values(error, source, fields, _UNSHOWN) from error
    except SettingsError as error:
        names = [name for name in known if f'"{name}"' in str(error)]
        raise mistakes.of_json(error, map(source, names)) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{_file()} is not TOML: {error}", "Correct it.") from error
    except (UnicodeDecodeError, OSError) as error:
        reason = f"{_file()}, or a file in {SECRETS}, cannot be read: {error}"
        raise UsageError(reason, "Correct it, or its rights.") from error
    mistakes.check_names(os.environ, _PREFIX, ["settings", *known])
    return settings


def _variable(name: str) -> str:
    return f"{_PREFIX}{name.upper()}"


def _file() -> Path:
    """The settings file, which need not be there unless it is named."""
    # The one place outside pydantic-settings that reads the environment.
    named = os.environ.get(_variable("settings"))
    if named and not Path(named).is_file():
        raise UsageError(f"IMAGEMILL_SETTINGS names {named}, which is no file", "Correct it.")
    return Path(named or "imagemill.toml")
