"""The schedules file: what is submitted when, read from TOML. docs/13-schedules.md explains it.

state = "s3://bucket/schedules"

[schedules.nightly]
cron = "0 3 * * *"
…
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from jobs.errors import (
    FatalError,
    InvalidRequest,
    TransientError,
    UsageError,
    plain,
    resembling,
    shown,
)
from jobs.formats import ImageFormat
from jobs.models.table import ModelTable
from jobs.output.scorers import check_rule, scorers_of
from jobs.output.storage import Storage, open_file, open_storage
from jobs.requests import Seed
from jobs.teams import OPEN_TEAM, TEAM, Priority
from jobs.toml import parse_toml
from producer.planning.recipes import MAX_IMAGES, Choosing
from producer.planning.resolution import PlanOptions
from producer.planning.tables import columns_of, kept_columns
from producer.schedules.templates import check_template, fill
from producer.schedules.times import Cron, wall_clock

Overlap = Literal["skip", "queue", "allow"]
Catchup = Literal["none", "last", "all"]

MOST_WINDOW = timedelta(days=366)
_TRIED = 50  # nominal times whose outputs must differ
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _parse_window(value: Any) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("must be a number with m, h or d: 90m, 24h, 7d")
    window = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if window > MOST_WINDOW:
        raise ValueError(f"must be at most {MOST_WINDOW.days}d")
    return window


def _find_zone(value: Any) -> ZoneInfo:
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise ValueError("is no time zone; examples: UTC, Europe/Berlin") from error


def _check_place(uri: str) -> str:
    """Refuse what can never be opened: an unknown protocol, an archive. What is away is none."""
    try:
        with suppress(TransientError, FatalError):
            open_storage(uri)
    except UsageError as error:
        raise ValueError(error.message) from error
    return uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(check_template)]


class Schedule(BaseModel):
    """One row of the schedules file.

    name: of the row; cron: five fields, read in `timezone`; manifest, out: URIs with placeholders
    (producer.schedules.templates); model, format, skip_invalid, n, map, keep, score, choose: as
    `imagemill submit` takes them; seed: of every run, or "nominal" for the Unix time of the nominal
    time. overlap: what becomes of a nominal time while an earlier run goes on; catchup: which
    nominal times that nobody was there for are made up, if they are no older than catchup_window.
    pause_after_failures: so many failures in a row pause the schedule; None: it is never paused.
    team, priority: of its runs.
    """

    model_config = _STRICT

    name: str
    timezone: Annotated[ZoneInfo, BeforeValidator(_find_zone)] = ZoneInfo("UTC")
    cron: str
    manifest: Uri
    out: Uri
    model: str | None = None
    format: ImageFormat = "jpeg"
    skip_invalid: bool = False
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    map: dict[str, str] = {}
    keep: list[str] = []
    score: list[str] = []
    choose: Choosing | None = None
    seed: Seed | Literal["nominal"] = 0
    overlap: Overlap = "skip"
    catchup: Catchup = "last"
    catchup_window: Annotated[timedelta, BeforeValidator(_parse_window)] = timedelta(days=1)
    pause_after_failures: Annotated[int, Field(ge=1)] | None = None
    team: Annotated[str, Field(pattern=f"^{TEAM.pattern}$")] = OPEN_TEAM
    priority: Priority = "normal"

    @field_validator("cron")
    @classmethod
    def check_cron(cls, cron: str, info: ValidationInfo) -> str:
        Cron(cron, info.data.get("timezone", ZoneInfo("UTC"))).check()
        return cron

    @field_validator("manifest", "out")
    @classmethod
    def check_uri(cls, template: str, info: ValidationInfo) -> str:
        _check_place(fill(template, info.data["name"], wall_clock()))
        return template

    @field_validator("map")
    @classmethod
    def check_map(cls, columns: dict[str, str]) -> dict[str, str]:
        try:
            columns_of([f"{name}={column}" for name, column in columns.items()])
        except UsageError as error:
            raise ValueError(str(error)) from error
        return columns

    @field_validator("keep", "score", "choose")
    @classmethod
    def check_option(cls, value: Any, info: ValidationInfo) -> Any:
        try:
            match info.field_name:
                case "keep":
                    kept_columns(value)
                case "score":
                    scorers_of(value)
                case _ if value and value.rule is None:
                    raise ValueError("says nothing to choose by")
                case _ if value and "score" in info.data:
                    check_rule(value.rule, scorers_of(info.data["score"]))
        except (UsageError, InvalidRequest) as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def check_out(self) -> Self:
        """Refuse an output location that two runs would share."""
        times = list(islice(self.times.after(wall_clock()), _TRIED))
        if len({self.out_at(nominal) for nominal in times}) < len(times):
            raise ValueError("out: two nominal times have the same; add {date} and {time}")
        return self

    @property
    def times(self) -> Cron:
        """Its nominal times."""
        return Cron(self.cron, self.timezone)

    def options_at(self, nominal: datetime, stores: tuple[str, ...]) -> PlanOptions:
        """How the manifest of a nominal time is read. stores: see PlanOptions."""
        return PlanOptions(
            seed=self.seed_at(nominal),
            model=self.model,
            format=self.format,
            skip_invalid=self.skip_invalid,
            local_files=True,
            stores=stores,
            n=self.n,
            columns=tuple(sorted(self.map.items())),
            keep=kept_columns(self.keep),
            scorers=scorers_of(self.score),
            rule=self.choose.rule if self.choose else None,
        )

    def local(self, moment: datetime) -> datetime:
        """A moment as the schedule's time zone writes it."""
        return moment.astimezone(self.timezone)

    def out_at(self, nominal: datetime) -> str:
        """Where the run of a nominal time goes."""
        return fill(self.out, self.name, self.local(nominal))

    def manifest_at(self, nominal: datetime) -> str:
        """The manifest of a nominal time."""
        return fill(self.manifest, self.name, self.local(nominal))

    def seed_at(self, nominal: datetime) -> int:
        """The seed of the run of a nominal time."""
        return max(0, int(nominal.timestamp())) if self.seed == "nominal" else self.seed


@dataclass(frozen=True)
class ScheduleTable:
    """All schedules of a file. `state` is where it is kept what became of them."""

    uri: str
    state: Storage
    schedules: Mapping[str, Schedule]

    def get(self, name: str) -> Schedule:
        """The schedule of that name.

        Raises:
            UsageError: there is none; the message lists those that there are.
        """
        if name in self.schedules:
            return self.schedules[name]
        known = ", ".join(sorted(self.schedules))
        raise UsageError(f"{self.uri} has no schedule {name!r}", f"It has: {known}.")

    def check_models(self, table: ModelTable) -> None:
        """Raises UsageError for the schedules whose model is none of the table."""
        wrong = list[str]()
        for name, schedule in self.schedules.items():
            try:
                table.route(schedule.model)
            except InvalidRequest as error:
                wrong.append(f"{name}.model: {error.reason}")
        if wrong:
            raise _refusal(self.uri, wrong)


class _File(BaseModel):
    model_config = _STRICT

    state: Annotated[str, Field(min_length=1), AfterValidator(_check_place)]
    schedules: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")], Schedule],
        Field(min_length=1),
    ]

    @model_validator(mode="before")
    @classmethod
    def name_rows(cls, file: Any) -> Any:
        """Each row knows its name."""
        rows = file.get("schedules") if isinstance(file, dict) else None
        if not isinstance(rows, dict):
            return file
        for name, row in rows.items():
            if isinstance(row, dict) and "name" in row:
                raise ValueError(f"schedules.{name}.name: the name is that of the table")
        named = {n: {"name": n} | r if isinstance(r, dict) else r for n, r in rows.items()}
        return file | {"schedules": named}


def load_schedules(uri: str) -> ScheduleTable:
    """Read a schedules file: a path or any storage URI.

    Raises:
        UsageError: it is missing, no TOML, or a row is wrong: names file, schedule and field of
            every mistake.
        TransientError, FatalError: the storage is away.
    """
    try:
        with open_file(uri, compression=None) as stream:
            file = _File.model_validate(parse_toml(stream.read().decode()))
    except UsageError as error:
        raise UsageError(
            f"schedules file {error.message}",
            "Write one (docs/13-schedules.md), or name it: --schedules-file.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"schedules file {uri} is not TOML: {error}", "Correct it.") from error
    except ValidationError as error:
        raise _refusal(uri, map(_mistake, error.errors())) from error
    return ScheduleTable(uri, open_storage(file.state), file.schedules)


def _refusal(uri: str, mistakes: Iterable[str]) -> UsageError:
    lines = [f"  {mistake}" for mistake in dict.fromkeys(mistakes)]
    text = "\n".join([f"schedules file {uri} is wrong:", *lines])
    return UsageError(text, "docs/13-schedules.md has every field.")


def _mistake(error: ErrorDetails) -> str:
    """One line: which schedule, which field, what is wrong."""
    place = [str(part) for part in error["loc"]]
    row = place[1:3] if place[:1] == ["schedules"] and len(place) > 1 else place[:1]
    match error["type"]:
        case "string_pattern_mismatch" if place[-1] == "[key]":
            row, reason = place[1:2], "a name is lower-case letters, digits, - and _"
        case "missing":
            reason = "is required"
        case "extra_forbidden":
            known = Schedule.model_fields if len(row) == 2 else _File.model_fields
            near = resembling(row[-1], (one for one in known if one != "name"))
            reason = f"unknown field{near}"
        case "value_error":
            reason = plain(error["msg"])
            if len(place) in (0, 2):  # a whole file's or row's own words begin with the field
                return ".".join([*row, ""]) + reason
        case _:
            reason = f"{error['msg'][:1].lower()}{error['msg'][1:]} (got {shown(error['input'])})"
    return f"{'.'.join(row)}: {reason}"
