"""What the command line prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.errors import ImagemillError, ManifestRefused
from jobs.output import layout
from producer.planning.rates import Rates, estimate

if TYPE_CHECKING:  # so that a command loads only what it needs itself
    from jobs.logs import LogFormat
    from jobs.models.table import ModelTable
    from producer.control.status import Status
    from producer.local.whole import Outcome
    from producer.planning.submission import Remarks, Survey
    from producer.schedules.history import Entry, Overview, Upcoming
    from producer.schedules.news import News
    from producer.upkeep.comparison import Comparison
    from producer.upkeep.doctor import Finding
    from producer.upkeep.export.job import Outcome as Export
    from producer.upkeep.export.layouts import LaidOut
    from producer.upkeep.export.pushing import Pushed
    from producer.upkeep.fsck import Damage
    from producer.upkeep.usage import Usage
    from producer.upkeep.verification import Verdict
    from producer.upkeep.weights import Weights

SHOWN_PATHS = 20
UNBOUNDED = 1 << 20  # characters of a line
UNBROKEN = ("nominal time", "next")  # columns

log = logging.getLogger(__name__)


def say(text: str) -> None:
    """A line for people, on stderr."""
    _console(stderr=True).print(text)


def show(text: str) -> None:
    """A line of the result, on stdout."""
    _console().print(text)


def show_json(value: Any) -> None:
    """A dataclass or plain data, as JSON on stdout."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    print(orjson.dumps(value, option=options).decode(), end="")


def say_news(news: News) -> None:
    """Something that happened, for people on stderr."""
    say(str(news))


def announce(text: str, form: LogFormat) -> None:
    """A line about this process itself: for people, or of the log where that is JSON."""
    if form == "json":
        log.info(text)
    else:
        say(text)


def log_news(news: News) -> None:
    """The same as a line of the log, with its fields where that is JSON."""
    fields = {name: value for name, value in asdict(news).items() if value and name != "text"}
    log.info("%s", news, extra=fields)


def show_news(news: News | Verdict) -> None:
    """The same, or a verdict, as a line of JSON on stdout, at once."""
    event = {"at": datetime.now(UTC).isoformat(timespec="seconds")} | asdict(news)
    print(orjson.dumps(event).decode(), flush=True)


def show_error(error: ImagemillError) -> None:
    """What failed and what to do next; of a refused manifest also its first bad lines."""
    console = _console(stderr=True)
    console.print(Text("Error: ", "bold red"), Text(error.message), sep="")
    if isinstance(error, ManifestRefused):
        for line in error.errors:
            console.print(f"  {line}")
        if error.reasons > len(error.errors):
            more = f"{error.reasons - len(error.errors):,} more"
            console.print(
                f"  … and {more}: imagemill plan, with these options and --json, lists them"
            )
    if error.hint:
        console.print(error.hint)


def show_outcome(outcome: Outcome) -> None:
    """The end of a job."""
    out, summary = outcome.out, outcome.summary
    if not outcome.rendered:
        show(f"Nothing was left to render: {summary.done:,} images in {out}")
    else:
        pace = f", {outcome.pace:.1f} images/s while rendering" if outcome.pace else ""
        show(f"{_count(summary.done, 'image')} in {out} ({outcome.seconds:.1f} s{pace})")
        if summary.busy:
            show(_devices(summary.busy, summary.useful))
    if summary.without_image:
        counts = {
            "failed": summary.failed,
            "rejected": summary.rejected,
            "invalid": summary.invalid,
        }
        reasons = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        show(f"{summary.without_image:,} without an image ({reasons}): {out}/{layout.ERRORS}")
    for scorer, problem in summary.unscored.items():
        show(f"No scores of {scorer} for some images: {problem}")


def show_outcome_json(outcome: Outcome) -> None:
    """run.json's content under "summary", with where it is and what this command did."""
    show_json(asdict(outcome) | {"pace": outcome.pace})


def show_statuses(statuses: Sequence[Status]) -> None:
    """A table of runs."""
    if not statuses:
        say("The broker knows no runs.")
        return
    table = _table("run", "state", "done", "failed", "requests", "chunks", "output")
    for s in statuses:
        counts = [f"{count:,}" for count in (s.done, s.failed, s.requests)]
        chunks = f"{s.chunks_done:,}/{s.chunks:,}"
        table.add_row(s.run_id, s.state, *counts, chunks, Text(s.out))
    _console().print(table)
    for s in statuses:
        if s.retries:
            counts = [_count(s.deaths, "death"), _count(s.suspects, "suspected request")]
            show(f"{s.run_id}: {s.retries:,} chunks tried again, {', '.join(counts)}")
        if s.busy:
            show(f"{s.run_id}: {_devices(s.busy, s.useful)}")
        for line in s.unfit:
            show(f"{s.run_id}: {line}")
        if s.unserved:
            names = ",".join(s.unserved)
            show(f"{s.run_id}: no worker serves {names}: imagemill worker --models {names}")
        if s.problem:
            show(f"{s.run_id}: {s.problem}")


def show_survey(survey: Survey, models: ModelTable, rates: Rates) -> None:
    """What a manifest would become, and how long one device would take."""
    if survey.lines != survey.requests:
        show(f"{_count(survey.lines, 'line')} for {_count(survey.requests, 'request')}")
    if survey.further:
        show(f"and up to {_count(survey.further, 'further candidate')}, as many as are needed")
    table = _table(
        "model", "size", "steps", "guidance", "slots", "images", "device time", "measured on"
    )
    total = guessed = 0.0
    for key, images in survey.groups.most_common():
        guess = estimate(key, images, models, rates)
        total += guess.seconds
        guessed += 0.0 if guess.device else guess.seconds
        table.add_row(
            Text(f"{key.model}:{key.adapter}" if key.adapter else key.model),
            f"{key.width} x {key.height}",
            str(key.steps),
            "" if key.guidance_scale is None else f"{key.guidance_scale:g}",
            str(key.slots_within(models.get(key.model).batch_width)),
            f"{images:,}",
            _duration(guess.seconds),
            guess.device or "a guess",
        )
    if survey.requests:
        _console().print(table)
        part = "" if guessed == total else f"{_duration(guessed)} of it "
        note = f" ({part}a guess)" if guessed else ""
        time = f"about {_duration(total)} on one device{note}, once its models are loaded"
        show(f"{_count(survey.requests, 'request')}, {time}")
    left = "" if survey.is_refused else ", left out"
    _show_remarks(survey.faults, "invalid line", left)
    _show_remarks(survey.doubts, "warning")


def _show_remarks(remarks: Remarks, noun: str, addition: str = "") -> None:
    if remarks.lines:
        show(f"{_count(remarks.lines, noun)}{addition}:")
    for one in remarks.first:
        show(f"  {one}")
    if remarks.reasons > len(remarks.first):
        show(f"  … and {remarks.reasons - len(remarks.first):,} more: --json lists them")


def show_models(models: ModelTable) -> None:
    """The models table and its default."""
    table = _table("model", "takes", "size", "steps", "width", "adapters", "description")
    for name, model in models.models.items():
        takes = [*model.takes, *(f"control:{control}" for control in model.controlnets)]
        table.add_row(
            name,
            ", ".join(takes),
            f"{model.size[0]} x {model.size[1]}",
            str(model.steps),
            str(model.batch_width),
            ", ".join(model.adapters) or "none",
            Text(model.description),
        )
    _console().print(table)
    for alias, route in models.aliases.items():
        show(f"{alias} is another name of {route}.")
    show(f"Lines that name no model get {models.default}.")


def show_weights(found: Sequence[Weights]) -> None:
    """A table of where weights are."""
    table = _table("model", "part", "state", "size", "type", "commit", "license", "where")
    for one in found:
        table.add_row(
            one.model,
            one.part,
            one.state,
            f"{one.bytes / 1e9:,.2f} GB" if one.bytes >= 1e7 else f"{one.bytes / 1e6:,.2f} MB",
            one.dtype,
            one.commit[:12],
            Text(one.license),
            Text(one.folder or one.source),
        )
    _console().print(table)
    missing = dict.fromkeys(one.model for one in found if one.state != "here")
    if missing:
        show(f"Downloads what is missing: imagemill models fetch {' '.join(missing)}")


def toml_row(name: str, row: dict[str, Any]) -> str:
    """A row of models.toml; its values are of kinds that JSON and TOML write alike."""
    lines = [f"{field} = {orjson.dumps(value).decode()}" for field, value in row.items()]
    return "\n".join([f"[models.{name}]", *lines])


def show_verdict(verdict: Verdict) -> None:
    """Whether a sample came out the same, and what has changed of the stack where it did not."""
    same = verdict.compared - len(verdict.differences)
    show(f"{same:,} of {verdict.compared:,} images have the same bytes")
    for difference in verdict.differences:
        show(f"{difference.file_name}: {difference.message}")
        for name, (then, now) in difference.stack.items():
            show(f"  {name}: {then} → {now}")
        if not difference.stack:
            show("  on the same stack")
    for model in sorted({one.model for one in verdict.differences if one.model}):
        show(f"Whether this device gives equal bytes at all: imagemill check-determinism {model}")


def show_damage(damage: Damage) -> None:
    """What is wrong with a dataset's images."""
    for state, paths in damage.found.items():
        for path in paths[:SHOWN_PATHS]:
            show(f"{state}: {path}")
        if len(paths) > SHOWN_PATHS:
            show(f"{state}: … and {len(paths) - SHOWN_PATHS:,} more")
    counts = ", ".join(f"{len(paths):,} {state}" for state, paths in damage.found.items() if paths)
    show(f"{_count(damage.images, 'image')} on record: {counts or 'all are there and whole'}")


def show_finding(finding: Finding) -> None:
    """One thing that `imagemill doctor` has looked at."""
    show(f"{finding.state:5}  {finding.what}: {finding.detail}")
    if finding.hint:
        show(f"       {finding.hint}")


def show_usage(by: str, found: Sequence[Usage]) -> None:
    """A table of what was used."""
    table = _table(by, "device seconds", "images", "rejected", "failed", "bytes")
    for one in found:
        counts = [f"{count:,}" for count in (one.images, one.rejected, one.failed, one.bytes)]
        table.add_row(Text(one.name), f"{one.device_seconds:,.1f}", *counts)
    _console().print(table)


def show_csv(found: Sequence[Usage]) -> None:
    """The same as CSV on stdout."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "device_seconds", "images", "rejected", "failed", "bytes"])
    writer.writerows(astuple(one) for one in found)


def show_schedules(schedules: Sequence[Overview]) -> None:
    """A table of schedules."""
    table = _table("schedule", "cron", "time zone", "next", "last", "state")
    for s in schedules:
        last = f"{_when(s.last.nominal)} {s.last.state}" if s.last else ""
        state = "paused" if s.paused else "active"
        table.add_row(s.name, s.cron, s.timezone, _when(s.next), last, state)
    _console().print(table)
    for s in schedules:
        if s.paused:
            show(f"{s.name} is paused: {s.paused}. imagemill schedule resume {s.name} goes on.")


def show_upcoming(times: Sequence[Upcoming]) -> None:
    """A table of nominal times to come."""
    table = _table("schedule", "nominal time", "manifest", "output")
    for one in times:
        table.add_row(one.name, _when(one.nominal), Text(one.manifest), Text(one.out))
    _console().print(table)


def show_history(entries: Sequence[Entry]) -> None:
    """A table of what became of a schedule's nominal times."""
    if not entries:
        say("Nothing was due so far.")
        return
    table = _table("nominal time", "state", "run", "images", "without", "output or reason")
    for e in entries:
        state = f"{e.state} (run-now)" if e.manual else e.state
        counts = [f"{e.done:,}", f"{e.without_image:,}"] if e.run_id else ["", ""]
        table.add_row(_when(e.nominal), state, e.run_id, *counts, Text(e.out or e.reason))
    _console().print(table)


def show_export(export: Export) -> None:
    """What lies at an export's target, and how much of it is new."""
    new = f", {export.written:,} of them written now" if export.written < export.shards else ""
    splits = ", ".join(f"{images:,} {split}" for split, images in export.splits.items())
    show(
        f"{_count(export.images, 'image')} ({splits}) in {_count(export.shards, 'shard')}{new}: "
        f"{export.target}"
    )


def show_layout(laid_out: LaidOut) -> None:
    """What lies where a suite's scorer looks for it, and how much of it is new."""
    show(
        f"{_count(laid_out.images, 'image')} of {_count(laid_out.prompts, 'prompt')}, "
        f"{_count(laid_out.written, 'file')} of {laid_out.suite} written now: {laid_out.target}"
    )


def show_pushed(pushed: Pushed) -> None:
    """What is on the hub now."""
    show(f"{_count(pushed.files, 'file')} ({pushed.bytes:,} bytes) in {pushed.repo}: {pushed.url}")


def show_comparison(found: Comparison) -> None:
    """How far two datasets are apart."""
    only = f"{found.only_first:,} only in the first, {found.only_second:,} only in the second"
    show(f"{_count(found.common, 'request')} in common, {only}")
    show(f"{_count(found.equal, 'image')} with the same bytes, {found.changed:,} with others")
    if found.changed > found.incomparable:
        show(
            f"Their pixels differ by {found.mean:.3g} of 255 on average and {found.largest} at "
            f"most; {_count(found.close, 'image')} by no more than 1"
        )
    for change in found.worst:
        far = change.problem or f"{change.mean:.3g} on average, {change.largest} at most"
        show(f"  {change.first}{f' ({change.custom_id})' if change.custom_id else ''}: {far}")
    if found.changed > len(found.worst):
        show(f"  … and {found.changed - len(found.worst):,} more")
    for name, column in sorted(found.columns.items()):
        show(f"{name} differs in {column.requests:,}: {column.first} → {column.second}")


def _console(stderr: bool = False) -> Console:
    # No markup: prompts, paths and reasons may hold anything.
    console = Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:  # what reads it wants ids and paths whole, and a row a line
        console.width = UNBOUNDED
    return console


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in UNBROKEN)
    return table


def _when(moment: str) -> str:
    """An ISO time for people; seconds only if there are some."""
    if not moment:
        return "never"
    time = datetime.fromisoformat(moment)
    return f"{time:%Y-%m-%d %H:%M:%S%z}" if time.second else f"{time:%Y-%m-%d %H:%M%z}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _devices(busy: float, useful: float) -> str:
    return f"devices busy {busy:.1%} of the time; {useful:.1%} of the rendered slots became images"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
