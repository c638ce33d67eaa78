"""Commands from prompts of others, and from finished datasets: preset, export, push, diff."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Exit, UsageError
from producer.commands import options
from producer.planning.presets import SuiteName
from producer.upkeep.export.order import NO_LICENSE, FormName


def preset(
    suite: Annotated[SuiteName, typer.Argument(help="The suite.")],
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Its own prompt files, of its repository."),
    ],
    n: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Images of each prompt.", show_default="the suite's own"
        ),
    ] = None,
) -> None:
    """Print the manifest of a benchmark suite of text-to-image models."""
    from producer.planning.presets import manifest_lines

    lines = b"".join(manifest_lines(suite, files, n))  # all of it, or none
    sys.stdout.buffer.write(lines)


def export(
    out: options.Dataset,
    target: Annotated[
        str, typer.Argument(metavar="URI", help="Where it goes: an empty folder or s3://.")
    ],
    to: Annotated[
        FormName | None, typer.Option(help="Form of the export.", show_default=False)
    ] = None,
    suite: Annotated[
        SuiteName | None,
        typer.Option(
            "--layout",
            help="Instead of --to: as the scorer of a benchmark suite reads images; of this the "
            "images that a manifest of imagemill preset made.",
        ),
    ] = None,
    shard_size: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Images a shard, up to 10,000; or their bytes, as 500MB or 1GiB.",
        ),
    ] = "500MB",
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only images whose columns fit: 'width >= 512 and model == \"shapes\"'. "
            "Takes == != < <= > >=, in, not in, and, or, not, parentheses, text in quotes, "
            "numbers, True, False and lists in brackets.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="SHARES",
            help="Splits and their shares: train=0.9,val=0.1. Images of one prompt stay together.",
        ),
    ] = "train=1",
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Columns, separated by commas, or all.",
            show_default="all but those of where and when it was rendered",
        ),
    ] = None,
    license_name: Annotated[
        str,
        typer.Option("--license", metavar="NAME", help="Of the dataset, for its card."),
    ] = NO_LICENSE,
    sign: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Sign each image with C2PA content credentials: a private key, PEM.",
        ),
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            metavar="CHAIN", help="Of --sign: the key's certificate and those above it, PEM."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes.", show_default="one a core, at most 4"),
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Write a dataset as shards that trainers read, with a dataset card.

    The same command again writes only the shards that are missing, and several of them at once, on
    one machine or many, share the work.
    """
    from producer.control.progress import display
    from producer.report.console import said_if_stopped, show_json
    from producer.report.exports import show_export, show_layout
    from producer.upkeep.export.credentials import read_credentials
    from producer.upkeep.export.job import export as write
    from producer.upkeep.export.layouts import lay_out
    from producer.upkeep.export.order import Order
    from producer.upkeep.export.selection import parse_condition, parse_splits
    from producer.upkeep.export.shards import Selection, parse_size

    if (to is None) == (suite is None):
        raise UsageError("--to or --layout is required, and only one of them")
    condition = parse_condition(where) if where is not None else None
    if suite is not None:
        if sign or certificate or columns or split != "train=1" or shard_size != "500MB":
            raise UsageError(
                "--layout goes with --where only", "A scorer reads plain files, all in one place."
            )
        with display(quiet) as shown:
            laid_out = lay_out(out, target, suite, condition, shown.exporting)
        if as_json:
            show_json(laid_out)
        elif not quiet:
            show_layout(laid_out)
        return
    assert to is not None
    names = tuple(map(str.strip, columns.split(","))) if columns else ()
    selection = Selection(condition, parse_splits(split), parse_size(shard_size), names)
    processes = workers or min(os.cpu_count() or 1, 4)
    if (sign is None) != (certificate is None):
        raise UsageError(
            "--sign and --certificate belong together", "Give both: --sign KEY --certificate CHAIN."
        )
    credentials = read_credentials(sign, certificate) if sign and certificate else None
    order = Order(to, selection, where or "", license_name, processes, credentials)
    stopped = "Stopped. Whole shards stay: run the same command again to write the others."
    with said_if_stopped(stopped), display(quiet) as shown:
        outcome = write(out, target, order, shown.exporting)
    if as_json:
        show_json(outcome)
    elif not quiet:
        show_export(outcome)


def push(
    export: Annotated[str, typer.Argument(metavar="EXPORT", help="The folder of an export.")],
    place: Annotated[str, typer.Argument(metavar="URI", help="hf://datasets/ORGANISATION/NAME")],
    private: Annotated[
        bool, typer.Option("--private", help="If the dataset is not there yet: only for you.")
    ] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Upload an export to the hub of Hugging Face, with its card; HF_TOKEN says who you are.

    The same command again sends only what the hub does not have.
    """
    from producer.report.console import said_if_stopped, show_json
    from producer.report.exports import show_pushed
    from producer.upkeep.export.pushing import push as upload

    with said_if_stopped("Stopped. Run the same command again to send what the hub lacks."):
        pushed = upload(export, place, private)
    if as_json:
        show_json(pushed)
    elif not quiet:
        show_pushed(pushed)


def diff(
    first: Annotated[str, typer.Argument(metavar="OUT1", help="Output location of one run.")],
    second: Annotated[str, typer.Argument(metavar="OUT2", help="And of another.")],
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compare two datasets: requests in common, bytes, pixels, columns.

    Exits with 1 if an image differs, or only one of them has it; with 0 if all have equal bytes.
    """
    from producer.control.progress import display
    from producer.report.checks import show_comparison
    from producer.report.console import show_json
    from producer.upkeep.comparison import compare

    with display(quiet) as shown:
        found = compare(first, second, shown.comparing)
    if as_json:
        show_json(found)
    elif not quiet:
        show_comparison(found)
    if found.differs:
        raise typer.Exit(Exit.FAILED)
