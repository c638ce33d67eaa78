"""Renders a sample of a finished run again and compares it byte by byte."""

from __future__ import annotations

import random
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import redis

from jobs.broker.counters import Counters, Series
from jobs.broker.runs import Runs
from jobs.ids import STORED_INPUT
from jobs.marks import stripped
from jobs.models.table import ModelTable
from jobs.output import layout
from jobs.output.dataset import read_pictured, read_rows
from jobs.output.records import STACK_FIELDS, Row, read_part
from jobs.output.storage import Storage, open_storage
from jobs.settings import Settings
from producer.control.installation import Installation
from producer.control.progress import Display, display, follow
from producer.local.embedded import Crew
from producer.local.whole import render
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, launch, prepare

_SAME = {"prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale"}
_SAME |= {"strength", "response_format", "mask_image", "control_images", "controlnet_weights"}


@dataclass(frozen=True, slots=True)
class Difference:
    """An image whose bytes changed. `stack`: field → (then, now); empty on the very same stack.

    model: "model" or "model:adapter" if it has other bytes now, "" if it has none.
    """

    file_name: str
    custom_id: str
    message: str
    stack: dict[str, tuple[str, str]]
    model: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many images were rendered again, and those that came out differently."""

    compared: int
    differences: list[Difference]


def verify(out: str, sample: int, settings: Settings, table: ModelTable, shown: Display) -> Verdict:
    """Render a sample of a dataset's images again on this machine.

    The sample is the same each time for the same dataset. Images that were rendered elsewhere may
    differ honestly: the differences say what of the stack has changed.

    Raises:
        UsageError: no run has finished there, or it has no images.
        ManifestRefused: a record asks for a model that the table lacks.
    """
    rows = draw_sample(open_storage(out), sample)
    with tempfile.TemporaryDirectory(prefix="imagemill-verify-") as name:
        again = open_storage(str(Path(name, "again")))
        job = _job(rows, open_storage(out), again, settings, table, Path(name))
        render(job, settings, Crew(), shown)
        return compare(rows, _rendered(rows, again))


def verify_by(
    known: Installation, out: str, sample: int, draw: int, settings: Settings, table: ModelTable
) -> Verdict:
    """Have an installation's workers render a sample again, after all other work, and count it.

    draw: another number, another sample. Nothing of it stays, neither in storage, where it lies in
    the dataset's `_verify` meanwhile, nor in the broker.

    Raises:
        UsageError, ManifestRefused: as verify.
        FatalError: the workers cannot render it.
        TransientError: broker or storage are away.
    """
    storage = open_storage(out)
    rows = draw_sample(storage, sample, draw)
    place = f"_verify/{uuid.uuid4().hex}"
    again = open_storage(f"{storage.uri}/{place}")
    with tempfile.TemporaryDirectory(prefix="imagemill-verify-") as name:
        job = _job(rows, storage, again, settings, table, Path(name))
        submission = identify(replace(job, priority="low"))
        try:
            plan = prepare(submission)
            with known.reached():
                launch(plan, again, known.runs, known.dispatcher)
                _await(known.runs, plan.run_id)
                verdict = compare(rows, _rendered(rows, again))
                known.runs.forget(plan.run_id)
        finally:
            storage.remove(place)
    count_verdict(known, verdict)
    return verdict


def _await(runs: Runs, run_id: str) -> None:
    """Wait for a run's end; it does not go on if that is not to be had."""
    try:
        with display(quiet=True) as shown:
            follow(runs, run_id, shown)
    except BaseException:
        with suppress(redis.RedisError):
            runs.set_state(run_id, "cancelled")
        raise


def _job(
    rows: list[Row],
    storage: Storage,
    again: Storage,
    settings: Settings,
    table: ModelTable,
    folder: Path,
) -> Job:
    """What renders some records of a dataset once more, with its manifest in a local folder."""
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes(b"\n".join(orjson.dumps(_again(row, table)) for row in rows))
    _copy_inputs(rows, storage, again)
    options = PlanOptions(stores=tuple(sorted(settings.input_stores)))
    return Job(str(manifest), again.uri, table, options)


def count_verdict(known: Installation, verdict: Verdict) -> None:
    """Add a verdict to what an installation tells Prometheus.

    Raises:
        TransientError: its broker cannot be reached.
    """
    sums: dict[Series, float] = {
        ("verified_images",): verdict.compared,
        ("verify_mismatches",): len(verdict.differences),
    }
    with known.reached():
        Counters(known.runs.client, known.runs.prefix).add(sums)


def draw_sample(storage: Storage, sample: int, draw: int = 0) -> list[Row]:
    """Some rows of a dataset in its order, drawn without replacement; others for another draw.

    Raises:
        UsageError: no run has finished there, or it has no images.
    """
    summary = read_pictured(storage)
    drawn = random.Random(draw).sample(range(summary.done), min(sample, summary.done))
    chosen = frozenset(drawn)
    rows = enumerate(read_rows(storage))
    return [row for number, row in rows if number in chosen]


def _copy_inputs(rows: list[Row], storage: Storage, to: Storage) -> None:
    for row in rows:
        mask = [row["mask_image"]] if "mask_image" in row else []
        for reference in (*row.get("input_images", ()), *mask, *row.get("control_images", ())):
            if stored := STORED_INPUT.fullmatch(reference):
                path = layout.stored_input(stored[1])
                to.write(path, storage.read(path))


def as_line(row: Row) -> dict[str, Any]:
    """The manifest line that asks for a record's image, with nothing left to a default."""
    line: dict[str, Any] = {name: value for name, value in row.items() if name in _SAME}
    if row["custom_id"]:
        line["custom_id"] = row["custom_id"]
    if row["task"] != "generate":
        line["image"] = row["input_images"]
    return line | {"model": _route(row), "seed": int(row["seed"]), "slots": row["batch_width"]}


def _route(row: Row) -> str:
    return f"{row['model']}:{row['adapter']}" if row["adapter"] else row["model"]


def _again(row: Row, table: ModelTable) -> dict[str, Any]:
    """The line as this machine's table can render it: with other slots if it must."""
    line, model = as_line(row), table.models.get(row["model"])
    if model and not model.takes_slots(row["batch_width"]):
        line["slots"] = model.batch_width
    return line


def compare(before: Iterable[Row], after: dict[int, Row]) -> Verdict:
    """Compare records with those of their lines, numbered from 0 in the same order."""
    rows = list(before)
    return Verdict(len(rows), list(_differences(rows, after)))


def _differences(rows: list[Row], after: dict[int, Row]) -> Iterator[Difference]:
    for number, row in enumerate(rows):
        now = after[number]
        if now["status"] == "done" and now["sha256"] == row["sha256"]:
            continue
        drawn = now["status"] == "done"
        message = "other bytes" if drawn else f"no image: {now['message']}"
        then, here = (
            {name: str(value) for name, value in one.items() if name in STACK_FIELDS}
            for one in (row, now)
        )
        changed = [name for name in then if name in here and then[name] != here[name]]
        stack = {name: (then[name], here[name]) for name in changed}
        if "versions" in stack:
            stack["versions"] = _changed(*stack["versions"])
        stack = {name: pair for name, pair in stack.items() if any(pair)}
        model = _route(row) if drawn else ""
        yield Difference(row["file_name"], row["custom_id"], message, stack, model)


def _changed(then: str, now: str) -> tuple[str, str]:
    """Of two lists of versions those that differ; what was not recorded then is no difference."""
    before, after = (
        {name: version for name, _, version in (one.partition(" ") for one in text.split(", "))}
        for text in (then, now)
    )
    names = [name for name in before if before[name] != after.get(name)]
    return (
        ", ".join(f"{name} {before[name]}" for name in names),
        ", ".join(f"{name} {after.get(name, 'absent')}" for name in names),
    )


def _rendered(before: list[Row], storage: Storage) -> dict[int, Row]:
    """What became of the lines now. Where files had no mark then, they are compared without it."""
    paths = (layout.METADATA, layout.ERRORS)
    after = {row["index"]: row for path in paths for row in read_part(storage, path)}
    for number, row in enumerate(before):
        now = after[number]
        if now["status"] == "done" and now["mark"] and not row.get("mark"):
            now["sha256"] = sha256(stripped(storage.read(now["file_name"]))).hexdigest()
    return after
