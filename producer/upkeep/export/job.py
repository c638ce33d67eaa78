"""Exports a finished dataset: shard by shard, in several processes, only those that are missing."""

from __future__ import annotations

import random
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import orjson

from jobs.errors import Exit, InvalidRequest, UsageError
from jobs.output import layout
from jobs.output.dataset import Summary, open_rows, read_finished
from jobs.output.images import ImageReader
from jobs.output.records import Row, read_row
from jobs.output.storage import Storage, open_storage
from producer.helpers import Helpers
from producer.upkeep.export.card import CARD, SHEET, make_card
from producer.upkeep.export.columns import Columns
from producer.upkeep.export.credentials import SIGNED, Credentials, SignedSamples, signatory
from producer.upkeep.export.croissant import CROISSANT, make_croissant
from producer.upkeep.export.forms import FORMS, Samples, Target
from producer.upkeep.export.order import NO_LICENSE, FormName, Order
from producer.upkeep.export.shards import Selection, Shard, Survey, lines_of, survey
from producer.upkeep.sheet import sheet_of

ABOUT = "export.json"  # what the shards beside it are made of
SHEET_IMAGES, SHEET_SHARDS = 24, 4  # on the contact sheet; of so many shards
VERSION = 2  # of how shards are written: another one's cannot be mixed with ours


@dataclass(frozen=True, slots=True)
class Outcome:
    """What lies at the target now. written: shards that this command wrote; bytes: of images."""

    target: str
    form: FormName
    images: int
    bytes: int
    shards: int
    written: int
    splits: dict[str, int]


Progress = Callable[[int, int], None]  # images so far, of how many


def export(out: str, to: str, order: Order, progress: Progress) -> Outcome:
    """Write the shards of a dataset that are not at the target yet, and its card.

    Any number of commands may do the same at once: each begins at another shard, and they leave out
    what they find.

    Raises:
        UsageError: there is no finished run, no image fits, or the target holds something else.
        FatalError: an image is missing or damaged, or a process of ours has ended; the shards that
            exist then are whole.
    """
    source, target = open_storage(out), open_storage(to)
    if source.holds(target):
        raise UsageError(f"{to} is inside the dataset", "Choose a place outside of it.")
    summary = read_finished(source)
    with open_rows(source) as lines:
        found = survey(lines, source, order.selection)
        _check(found, order)
        about = _about(found, summary, order)
        _claim(target, about)
        missing = list(_missing(target, found, order.form))
        written = 0
        done = found.images - sum(shard.images for shard in missing)
        tasks = (
            _Task(
                shard,
                lines_of(shard, lines, source, order.selection),
                found.columns.having(SIGNED) if order.credentials else found.columns,
                order.form,
                source.uri,
                target.uri,
                order.credentials,
            )
            for shard in missing
        )
        try:
            for shard, ours in _write_all(tasks, min(order.processes, len(missing))):
                written += ours
                done += shard.images
                progress(done, found.images)
        except BaseException:
            _unclaim(target, found.splits)
            raise
        _check_claim(target, about)  # another command may have failed, before our first shard
        if not target.exists(SHEET):
            # Of a stranger's images that are none there is no sheet.
            with suppress(InvalidRequest):
                sheet = sheet_of(source, _sample(found, lines, source, order.selection))
                target.write(SHEET, sheet)
    lacks_card = _lacks_card(target, order)
    if lacks_card or not target.exists(CROISSANT):
        target.write(CROISSANT, make_croissant(found, order))
    if lacks_card:
        target.write(CARD, make_card(found, summary, order, target.exists(SHEET)))
    splits = dict(found.splits)
    return Outcome(
        target.uri, order.form, found.images, found.bytes, len(found.shards), written, splits
    )


def _sample(
    found: Survey, lines: IO[bytes], source: Storage, selection: Selection
) -> Iterator[Row]:
    """What a sheet shows of some rows of an export, evenly over some of its shards."""
    some = found.shards[:: -(-len(found.shards) // SHEET_SHARDS)]
    each = -(-SHEET_IMAGES // len(some))
    where = source.name(layout.METADATA)
    for shard in some:
        own = lines_of(shard, lines, source, selection)
        for line in own[:: -(-len(own) // each)][:each]:
            row = read_row(line, where)
            told = {name: str(row.get(name, "")) for name in ("prompt", "model", "adapter", "seed")}
            yield cast("Row", told | {"file_name": row["file_name"]})


def _check(found: Survey, order: Order) -> None:
    if not found.shards:
        raise UsageError("no image is left to export", "Loosen --where, or look at errors.jsonl.")
    if len(found.extensions) > 1 and not FORMS[order.form].mixed:
        raise UsageError(
            f"{order.form} cannot hold {' and '.join(sorted(found.extensions))} side by side",
            "Choose one of them (--where 'response_format == \"jpeg\"'), or --to parquet.",
        )


def _about(found: Survey, summary: Summary, order: Order) -> bytes:
    """What the shards are made of; others are never put beside them."""
    selection = order.selection
    about: dict[str, Any] = {
        "version": VERSION,
        "form": order.form,
        "run_id": summary.run_id,
        "records": found.digest,
        "where": order.where,
        "columns": list(selection.columns),
        "splits": {split.name: split.share for split in selection.splits},
        "shard_size": asdict(selection.size),
    }
    if order.credentials:
        about["certificate"] = order.credentials.fingerprint
    return orjson.dumps(about, option=orjson.OPT_INDENT_2)


def _claim(target: Storage, about: bytes) -> None:
    """Say what the target is for; raises UsageError where it is for something else."""
    # In this order: who else begins now writes it first.
    names = [name for name in target.list("") if name != CARD and not name.startswith(".")]
    if names and not target.exists(ABOUT):
        raise UsageError(f"{target.uri} holds {names[0]} and is no export", "Choose another place.")
    _check_claim(target, about)


def _check_claim(target: Storage, about: bytes) -> None:
    """Write what the target is for, if nobody has; raises UsageError where it is something else."""
    before = target.create(ABOUT, about)
    if before != about:
        raise UsageError(
            f"{target.uri} holds another export ({_difference(before, about)})",
            "Choose another place, or remove that export.",
        )


def _lacks_card(target: Storage, order: Order) -> bool:
    """Whether there is none, or it says another license than the one that is given now."""
    try:
        card = target.read(CARD).decode(errors="replace")
    except FileNotFoundError:
        return True
    given = order.license != NO_LICENSE
    return given and not re.search(rf'^license: "?{re.escape(order.license)}"?$', card, re.M)


def _unclaim(target: Storage, splits: Iterable[str]) -> None:
    """Leave a target that holds no shard yet to whatever is ordered next."""
    if any(target.list(split) for split in splits):
        return
    target.remove(ABOUT)
    if target.local_root is not None:
        for split in splits:
            with suppress(OSError):  # there is none, or somebody else begins to write
                Path(target.local_root, split).rmdir()


def _difference(before: bytes, about: bytes) -> str:
    try:
        known, wanted = orjson.loads(before), orjson.loads(about)
        changed = [name for name in wanted | known if known.get(name) != wanted.get(name)]
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        changed = []
    return f"other {', '.join(changed)}" if changed else f"its {ABOUT} is not ours"


def _missing(target: Storage, found: Survey, form: FormName) -> Iterator[Shard]:
    """The shards to write, from anywhere on: others may write them too."""
    there = {f"{split}/{name}" for split in found.splits for name in target.list(split)}
    begun = [shard for shard in found.shards if shard.name in there]  # that are folders
    there |= {path for shard in begun for path in _files(shard, form) if target.exists(path)}
    missing = [shard for shard in found.shards if not _files(shard, form) <= there]
    first = random.randrange(len(missing)) if missing else 0
    yield from missing[first:]
    yield from missing[:first]


def _files(shard: Shard, form: FormName) -> set[str]:
    return {f"{shard.name}{ending}" for ending in FORMS[form].endings}


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to write, with its records; it can be sent to another process."""

    shard: Shard
    lines: list[bytes]
    columns: Columns
    form: FormName
    out: str
    to: str
    credentials: Credentials | None

    def write(self) -> bool:
        """False if somebody else has written it meanwhile."""
        form, source, target = FORMS[self.form], open_storage(self.out), open_storage(self.to)
        if all(map(target.exists, _files(self.shard, self.form))):
            return False
        where = source.name(layout.METADATA)
        rows: list[Row] = [read_row(line, where) for line in self.lines]
        with closing(ImageReader(source)) as images:
            samples = self._samples(images)
            with form.writer(samples, Target(target, self.shard, self.columns)) as writer:
                writer.add(rows)
        return True

    def _samples(self, images: ImageReader) -> Samples:
        if self.credentials:
            return SignedSamples(images, signatory(self.credentials)).read
        return lambda rows: zip(rows, images.read(rows), strict=True)


def _write_all(tasks: Iterator[_Task], processes: int) -> Iterator[tuple[Shard, bool]]:
    """Every shard once it is there, and whether we wrote it."""
    if processes <= 1:
        for task in tasks:
            yield task.shard, task.write()
        return
    pending: deque[tuple[Shard, Future[bool]]] = deque()
    with Helpers(processes, _begin) as helpers:
        for task in tasks:
            pending.append((task.shard, helpers.submit(task.write)))
            if len(pending) > processes:  # one more than are written, so that none waits
                shard, future = pending.popleft()
                yield shard, future.result()
        while pending:
            shard, future = pending.popleft()
            yield shard, future.result()


def _begin() -> None:
    """Ctrl-C ends the shard under way with what it has opened; the command says the rest."""
    signal.signal(signal.SIGINT, _stop)


def _stop(*_: object) -> NoReturn:
    sys.unraisablehook = lambda _: None  # or files that are half written complain at the end
    sys.exit(Exit.INTERRUPTED)
