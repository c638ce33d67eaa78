"""Runs: what became of them, where they are, what a manifest would become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from rich.text import Text

from jobs.errors import ImagemillError, printable
from jobs.output import layout
from jobs.output.records import read_part
from jobs.output.storage import open_storage
from producer.planning.rates import Rates, estimate
from producer.report.console import counted, new_table, say, show, show_json

if TYPE_CHECKING:
    from jobs.models.table import ModelTable
    from producer.control.status import Status
    from producer.local.whole import Outcome
    from producer.planning.survey import Remarks, Survey

SHOWN_REASONS = 3  # why there is no image, of as many requests
SHOWN_NAME, SHOWN_MESSAGE = 64, 160  # characters
SHOWN_KINDS = 20  # of pipeline calls, those with most images


def show_outcome(outcome: Outcome, tell: Callable[[str], None] = show) -> None:
    """The end of a job, told line by line."""
    out, summary = outcome.out, outcome.summary
    if not outcome.rendered:
        images = counted(summary.done, "image")
        is_local = open_storage(out).local_root is not None  # where files that are gone are told
        checks = "compares their bytes" if is_local else "looks whether their files are there"
        tell(f"Nothing was left to render: {images} on record; imagemill fsck {out} {checks}")
    else:
        pace = f", {outcome.pace:.1f} images/s while rendering" if outcome.pace else ""
        tell(f"{counted(summary.done, 'image')} in {out} ({outcome.seconds:.1f} s{pace})")
        if summary.busy:
            tell(_devices(summary.busy, summary.useful))
    if summary.without_image:
        counts = {
            "failed": summary.failed,
            "rejected": summary.rejected,
            "invalid": summary.invalid,
        }
        reasons = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        tell(f"{summary.without_image:,} without an image ({reasons}):")
        for reason in _first_reasons(out):
            tell(f"  {reason}")
        tell(f"Why, a row each: {out}/{layout.ERRORS}")
    for scorer, problem in summary.unscored.items():
        tell(f"No scores of {scorer} for some images: {problem}")


def _first_reasons(out: str) -> Iterator[str]:
    """Why the first requests without an image have none; of a dataset that others have changed
    since, what can still be told."""
    with suppress(ImagemillError, OSError, LookupError):
        for row in islice(read_part(open_storage(out), layout.ERRORS), SHOWN_REASONS):
            name = printable(row.get("custom_id") or f"index {row['index']}", SHOWN_NAME)
            yield f"{name}: {row['code']}: {printable(row['message'], SHOWN_MESSAGE)}"


def show_outcome_json(outcome: Outcome) -> None:
    """run.json's content under "summary", with the run's id, where it is and what was done."""
    show_json({"run_id": outcome.summary.run_id} | asdict(outcome) | {"pace": outcome.pace})


def show_statuses(statuses: Sequence[Status]) -> None:
    """A table of runs."""
    if not statuses:
        say("The broker knows no runs.")
        return
    table = new_table("run", "state", "done", "no image", "requests", "chunks", "output")
    for s in statuses:
        counts = [f"{count:,}" for count in (s.done, s.failed, s.requests)]
        chunks = f"{s.chunks_done:,}/{s.chunks:,}"
        table.add_row(s.run_id, s.state, *counts, chunks, Text(s.out))
    show(table)
    for s in statuses:
        if s.retries:
            counts = [counted(s.deaths, "death"), counted(s.suspects, "suspected request")]
            show(f"{s.run_id}: {counted(s.retries, 'chunk')} tried again, {', '.join(counts)}")
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
        show(f"{counted(survey.lines, 'line')} for {counted(survey.requests, 'request')}")
    if survey.further:
        show(f"and up to {counted(survey.further, 'further candidate')}, as many as are needed")
    table = new_table(
        "model", "size", "steps", "guidance", "slots", "images", "device time", "measured on"
    )
    kinds = sorted(survey.tallies.items(), key=lambda one: -one[1].images)
    guesses = [estimate(key, tally.images, models, rates) for key, tally in kinds]
    total = sum(guess.seconds for guess in guesses)
    guessed = sum(guess.seconds for guess in guesses if not guess.device)
    for (key, tally), guess in islice(zip(kinds, guesses, strict=True), SHOWN_KINDS):
        table.add_row(
            Text(f"{key.model}:{key.adapter}" if key.adapter else key.model),
            f"{key.width} x {key.height}",
            str(key.steps),
            " to ".join(f"{one:g}" for one in sorted(set(tally.guidance or ()))),
            str(key.slots_within(models.get(key.model).batch_width)),
            f"{tally.images:,}",
            _duration(guess.seconds),
            guess.device or "a guess",
        )
    if others := kinds[SHOWN_KINDS:]:
        images = sum(tally.images for _, tally in others)
        seconds = sum(guess.seconds for guess in guesses[SHOWN_KINDS:])
        name = Text(f"{len(others):,} others")
        table.add_row(name, "", "", "", "", f"{images:,}", _duration(seconds), "")
    if survey.requests:
        show(table)
        part = "" if guessed == total else f"{_duration(guessed)} of it "
        note = f" ({part}a guess)" if guessed else ""
        time = f"about {_duration(total)} on one device{note}, once its models are loaded"
        show(f"{counted(survey.requests, 'request')}, {time}")
    left = "" if survey.is_refused else ", left out"
    _show_remarks(survey.faults, "invalid line", left)
    _show_remarks(survey.doubts, "warning")


def _show_remarks(remarks: Remarks, noun: str, addition: str = "") -> None:
    if remarks.lines:
        show(f"{counted(remarks.lines, noun)}{addition}:")
    for one in remarks.first:
        show(f"  {one}")
    if remarks.reasons > len(remarks.first):
        show(f"  … and {remarks.reasons - len(remarks.first):,} more: --json lists them")


def _devices(busy: float, useful: float) -> str:
    return f"devices busy {busy:.1%} of the time; {useful:.1%} of the rendered slots became images"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
