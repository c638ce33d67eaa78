"""Arguments and options that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.formats import ImageFormat
from jobs.ids import SEEDS
from jobs.teams import OPEN_TEAM, Priority, check_team

if TYPE_CHECKING:  # --help is fast
    from jobs.models.table import ModelTable
    from jobs.settings import Settings
    from producer.planning.resolution import PlanOptions

REQUESTS = "Requests"
DEPLOYMENT = "Deployment"
OUTPUT = "Output"

Manifest = Annotated[
    str, typer.Argument(metavar="MANIFEST", help="JSONL, plain or .gz, or a table; a file or URI.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run id, or its output location.")]
Dataset = Annotated[str, typer.Argument(metavar="OUT", help="Output location of a finished run.")]
Output = Annotated[str, typer.Argument(metavar="OUT", help="Output location of a run.")]

Out = Annotated[
    str,
    typer.Option("--out", "-o", metavar="URI", help="Where the dataset goes: a folder or s3://."),
]

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Model of the lines that name none.",
        show_default="of the models table",
        rich_help_panel=REQUESTS,
    ),
]


def _seed(given: str | int) -> int:
    """A seed, which --help need not write out the largest of."""
    if str(given).isdecimal() and int(given) < SEEDS:
        return int(given)
    raise typer.BadParameter(f"{given} is no whole number from 0 to 2⁶⁴−1.")


Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        parser=_seed,
        help="Seed of the run, for the lines that have none: 0 to 2⁶⁴−1.",
        rich_help_panel=REQUESTS,
    ),
]
Format = Annotated[
    ImageFormat,
    typer.Option(help="Image format of the lines that name none.", rich_help_panel=REQUESTS),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Read only N lines.", rich_help_panel=REQUESTS),
]
Images = Annotated[
    int,
    typer.Option(
        "--n",
        min=1,
        max=10_000,
        metavar="N",
        help="Images of each line that does not say.",
        rich_help_panel=REQUESTS,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="Column of a table that stands for a field; may be repeated.",
        show_default="columns of the fields' names",
        rich_help_panel=REQUESTS,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="COLUMN",
        help="Column of a table that the dataset is to have too; may be repeated.",
        rich_help_panel=REQUESTS,
    ),
]
Scorers = Annotated[
    list[str] | None,
    typer.Option(
        "--score",
        metavar="NAME[=WEIGHTS]",
        help="Score the images as they are rendered, as imagemill score does later: statistics, "
        "duplicates, shapes, clip=FOLDER or REPOSITORY, or what is installed; may be repeated.",
        rich_help_panel=REQUESTS,
    ),
]
Choose = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="How the images of lines that do not say are chosen among candidates, by scores: "
        '{"best_of": 4, "by": "clip"} or {"min": {"clip": 0.25}, "max_tries": 8}.',
        rich_help_panel=REQUESTS,
    ),
]
SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid",
        help="Render the valid lines; list the others in errors.jsonl.",
        rich_help_panel=REQUESTS,
    ),
]

Team = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Whom it counts for in turns and usage.", rich_help_panel=DEPLOYMENT
    ),
]
Rank = Annotated[
    Priority,
    typer.Option(
        "--priority",
        help="high overtakes others at the next chunk; low waits for them.",
        rich_help_panel=DEPLOYMENT,
    ),
]

Wait = Annotated[bool, typer.Option("--wait", help="Follow the run to its end.")]

Devices = Annotated[
    str,
    typer.Option(metavar="LIST", help="auto, cpu, or GPUs: 0,1,…", rich_help_panel=DEPLOYMENT),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that share the CPU.",
        show_default="1",
        rich_help_panel=DEPLOYMENT,
    ),
]
Broker = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Redis of the installation.",
        show_default="IMAGEMILL_BROKER, or this machine's port 6379",
        rich_help_panel=DEPLOYMENT,
    ),
]
ModelsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A models.toml.",
        show_default="the built-in one",
        rich_help_panel=DEPLOYMENT,
    ),
]

LogFormat = Annotated[
    Literal["text", "json"] | None,
    typer.Option(
        help="What is written to stderr.",
        show_default="IMAGEMILL_LOG_FORMAT, or text",
        rich_help_panel=DEPLOYMENT,
    ),
]

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)
]


@dataclass(frozen=True)
class Requests:
    """The options that say what the lines of a manifest stand for."""

    model: Model = None
    seed: Seed = 0
    format: Format = "jpeg"
    n: Images = 1
    map: Columns = None
    keep: Keep = None
    score: Scorers = None
    choose: Choose = None
    skip_invalid: SkipInvalid = False

    def planned(
        self, settings: Settings, table: ModelTable, limit: int | None = None
    ) -> PlanOptions:
        """What they say of a plan, whose inputs may be files of this machine.

        Raises:
            UsageError: `map`, `keep`, `score` or `choose` is none, `choose` reads what `score` does
                not give, or there is no such model.
        """
        from jobs.errors import InvalidRequest, UsageError
        from jobs.output.scorers import check_rule, scorers_of
        from producer.planning.recipes import rule_of
        from producer.planning.resolution import PlanOptions
        from producer.planning.tables import columns_of, kept_columns

        try:
            table.route(self.model)
        except InvalidRequest as error:  # once; else each line that names none would have it
            folders = "A folder of a pipeline and ORG/REPOSITORY are models too."
            raise UsageError(f"--model: {error.reason}", "" if table.closed else folders) from error
        scorers, rule = scorers_of(self.score), rule_of(self.choose)
        try:
            if rule:
                check_rule(rule, scorers)
        except InvalidRequest as error:
            raise UsageError(f"--choose: {error}") from error
        return PlanOptions(
            model=self.model,
            seed=self.seed,
            format=self.format,
            limit=limit,
            skip_invalid=self.skip_invalid,
            local_files=True,
            stores=tuple(sorted(settings.input_stores)),
            n=self.n,
            columns=columns_of(self.map),
            keep=kept_columns(self.keep),
            scorers=scorers,
            rule=rule,
        )


def team_of(name: str, settings: Settings) -> str:
    """The team of a command's option; one that the settings do not know is told on stderr.

    Raises:
        UsageError: it is no plain name.
    """
    known = settings.teams
    if known and check_team(name) not in known and name != OPEN_TEAM:
        from jobs.errors import resembling
        from producer.report.console import say

        near = resembling(name, known)
        say(f"team {name} has no quota: the settings know {', '.join(sorted(known))}{near}")
    return check_team(name)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option for each field of those of its parameters that are dataclasses.

    Typer knows no group of options that several commands share.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }

    @wraps(command)
    def spread_command(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**given)

    spread_command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            option
            for name, parameter in signature.parameters.items()
            for option in (
                inspect.signature(groups[name], eval_str=True).parameters.values()
                if name in groups
                else (parameter,)
            )
        ]
    )
    return spread_command
