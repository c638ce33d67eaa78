"""Turns a run's parts into the dataset that people load: metadata.jsonl, errors.jsonl, run.json.

Works shard by shard, so memory does not grow with the run; anyone may call it, any number of times.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import IO, Any, Literal, Protocol

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import FatalError, UsageError
from jobs.ids import RUN_ID
from jobs.output import layout
from jobs.output.choices import Choice, Chooser
from jobs.output.kept import keeper
from jobs.output.plan import Plan, read_shard
from jobs.output.records import STACK_FIELDS, Row, parts_by_shard, read_part, read_parts, read_row
from jobs.output.scores import Joiner
from jobs.output.storage import Storage
from jobs.output.writers import JsonlComparer, JsonlWriter
from jobs.requests import Request

CALLS_KEPT = 65_536

RunState = Literal["running", "cancelled", "finished"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What run.json holds.

    unreachable: rejected ones whose inputs could not be fetched, so that another try may succeed;
    stacks: what rendered how many images; device_seconds: of pipeline calls, summed over devices;
    device_span: from each device's first pipeline call to the end of its last, summed;
    device_slots: what all calls had room for; the other seconds are summed over images; invalid:
    lines that --skip-invalid left out; unscored: scorers that failed, as the plan names them, and
    why; rejects: candidates that were not chosen. device_seconds are without those of compiling.
    """

    run_id: str
    state: RunState
    manifest: str
    seed: int
    created_at: str
    requests: int
    done: int = 0
    failed: int = 0
    rejected: int = 0
    unreachable: int = 0
    invalid: int = 0
    reused: int = 0
    fingerprints: dict[str, str] = field(default_factory=dict)
    stacks: list[dict[str, Any]] = field(default_factory=list)
    first_record_at: str = ""
    last_record_at: str = ""
    finished_at: str = ""
    device_seconds: float = 0.0
    seconds_load: float = 0.0
    seconds_compile: float = 0.0
    seconds_encode: float = 0.0
    seconds_store: float = 0.0
    device_span: float = 0.0
    device_slots: int = 0
    unscored: dict[str, str] = field(default_factory=dict)
    rejects: int = 0

    @property
    def busy(self) -> float:
        """The share of the devices' time in which they rendered; 0 if it is not known."""
        return min(1.0, self.device_seconds / self.device_span) if self.device_span else 0.0

    @property
    def useful(self) -> float:
        """The share of the rendered slots that became images; 0 if it is not known."""
        return (self.done + self.rejects) / self.device_slots if self.device_slots else 0.0

    @property
    def without_image(self) -> int:
        """Requests of the manifest that have no image."""
        return self.failed + self.rejected + self.invalid

    @property
    def retriable(self) -> int:
        """Requests without an image that may get one when they are tried again."""
        return self.failed + self.unreachable

    @property
    def worth_trying_again(self) -> bool:
        """Whether a request may get the image, or an image the scores, that it has not."""
        return bool(self.retriable or self.unscored)

    @property
    def seconds(self) -> float:
        """From the first to the last record."""
        if not self.first_record_at:
            return 0.0
        first, last = map(datetime.fromisoformat, (self.first_record_at, self.last_record_at))
        return (last - first).total_seconds()


_SUMMARY = TypeAdapter(Summary)
# Two adapters of a model are two stacks.
_SUMMARIZED = ("model", "adapter", *STACK_FIELDS)
_stack_of = itemgetter(*_SUMMARIZED)


class IncompleteRun(FatalError):
    """Some requests have no record yet; `missing` counts them."""

    def __init__(self, run_id: str, missing: int) -> None:
        super().__init__(f"run {run_id}: {missing} requests have no record yet", "Resume the run.")
        self.missing = missing


class Unscored(FatalError):
    """Images cannot be chosen: their scores are gone."""

    def __init__(self, storage: Storage, scorers: Iterable[str]) -> None:
        names = ", ".join(sorted(scorers))
        super().__init__(
            f"{storage.uri} has lost scores of {names}, by which images are chosen",
            f"imagemill fsck {storage.uri} --repair scores them again; then run this again.",
        )


def write_summary(storage: Storage, summary: Summary) -> None:
    storage.write(layout.RUN, orjson.dumps(summary, option=orjson.OPT_INDENT_2))


def read_summary(storage: Storage) -> Summary | None:
    """The run.json of an output location; None if there is none.

    Raises:
        FatalError: it is none of ours.
    """
    try:
        summary = _SUMMARY.validate_json(storage.read(layout.RUN))
    except FileNotFoundError:
        return None
    except ValidationError:
        summary = None
    if summary is None or not RUN_ID.fullmatch(summary.run_id):
        raise FatalError(
            f"{storage.name(layout.RUN)} was not written by imagemill, or is damaged",
            "Name another location; or, if a run's images are there, move that file away: the same "
            "run command again writes it anew.",
        )
    return summary


def read_finished(storage: Storage) -> Summary:
    """The run.json of an output location whose dataset is complete.

    Raises:
        UsageError: no run has finished there. FatalError: as read_summary.
    """
    summary = read_summary(storage)
    if summary is None:
        raise UsageError(
            f"{storage.uri} is no output of a run: it has no {layout.RUN}",
            "Name what was given as --out.",
        )
    if summary.state != "finished":
        raise UsageError(
            f"run {summary.run_id} in {storage.uri} has not finished",
            f"imagemill status {storage.uri} tells how far it is. To go on: imagemill resume, or "
            "the same run or submit again.",
        )
    return summary


def read_pictured(storage: Storage) -> Summary:
    """As read_finished, of a run that made images.

    Raises:
        UsageError: it made none; or as read_finished.
    """
    summary = read_finished(storage)
    if not summary.done:
        raise UsageError(
            f"run {summary.run_id} in {storage.uri} has no images",
            f"{layout.ERRORS} there says why, a row a request.",
        )
    return summary


@contextmanager
def open_rows(storage: Storage, name: str = layout.METADATA) -> Iterator[IO[bytes]]:
    """The lines of a finished run's metadata.jsonl, or of another file of its dataset.

    Raises:
        FatalError: it is gone.
    """
    with ExitStack() as stack:
        try:
            lines = stack.enter_context(storage.reader(name))
        except FileNotFoundError:
            raise FatalError(
                f"{storage.name(name)} is missing",
                f"imagemill fsck {storage.uri} --repair writes it anew; then run this again.",
            ) from None
        yield lines


def read_rows(storage: Storage, name: str = layout.METADATA) -> Iterator[Row]:
    """The rows of such a file. Raises FatalError: it is gone, or a row is none of ours."""
    with open_rows(storage, name) as lines:
        for line in lines:
            yield read_row(line, storage.name(name))


def planned(plan: Plan, state: RunState = "running") -> Summary:
    """The summary of a run that has not finished."""
    return Summary(
        run_id=plan.run_id,
        state=state,
        manifest=plan.manifest,
        seed=plan.seed,
        created_at=plan.created_at,
        requests=plan.until(0),
        invalid=plan.invalid,
        reused=plan.reused,
        fingerprints=plan.fingerprints,
    )


def write_dataset(storage: Storage, plan: Plan, unscored: Mapping[str, str] = {}) -> Summary:
    """Write the dataset of a run whose every request has a record; returns what run.json says.

    unscored: see Summary.

    Raises:
        IncompleteRun: a request has no record. Unscored: images are chosen by scores that are gone.
            Nothing is replaced.
    """
    with JsonlWriter(storage, plan.chooses) as writer:
        tally = _write_rows(storage, plan, writer)
    summary = replace(tally.summary(plan), unscored=dict(unscored))
    write_summary(storage, summary)
    return summary


def rewrite_rows(storage: Storage, plan: Plan) -> None:
    """Write the rows of a finished run anew, with the scores that its images have by now.

    Raises: as write_dataset.
    """
    with JsonlWriter(storage, plan.chooses) as writer:
        _write_rows(storage, plan, writer)


def stale_files(storage: Storage, plan: Plan) -> list[str]:
    """The dataset's files that do not hold what the records of a finished run say.

    Raises: as write_dataset.
    """
    with ExitStack() as opened:
        comparer = JsonlComparer(storage, opened, plan.chooses)
        _write_rows(storage, plan, comparer)
        return comparer.stale()


class _RowsWriter(Protocol):
    def add(self, rows: Sequence[Row]) -> None: ...

    def add_rejects(self, rows: Sequence[Row]) -> None: ...


def _write_rows(storage: Storage, plan: Plan, writer: _RowsWriter) -> _Tally:
    tally, scores = _Tally(), Joiner(storage, plan.run_id)
    chooser = Chooser(storage, plan) if plan.chooses else None
    with keeper(storage, plan) as kept:
        for row in _invalid_rows(storage, plan):
            writer.add([row])
        for number, shard in enumerate(rows_by_shard(storage, plan)):
            # The index is the plan's: a reused record may stand on another line now.
            known: list[tuple[Request, Row | None]] = [
                (request, row | {"index": request.index} if row else None) for request, row in shard
            ]
            rows, rejects = _sifted(known, chooser, storage, plan.run_id)
            tally.add_times([row for _, row in known if row])
            # Kept columns are read once, from the first line on: so all rows of a line together.
            both = sorted((*rows, *rejects), key=place_of_row) if rejects else rows
            joined = scores.join(number, kept.join(both) if kept else both)
            # By identity: of an image without any the row is much like that of its first candidate.
            rejected = {id(row) for row in rejects}
            chosen, others = list[Row](), list[Row]()
            for row, new in zip(both, joined, strict=True):
                (others if id(row) in rejected else chosen).append(new)
            tally.add(chosen)
            writer.add(chosen)
            writer.add_rejects(others)
            tally.rejects += len(others)
    return tally


def _sifted(
    known: Sequence[tuple[Request, Row | None]],
    chooser: Chooser | None,
    storage: Storage,
    run_id: str,
) -> tuple[list[Row], list[Row]]:
    """The rows of a shard's images, and of the candidates for them that were not chosen.

    Raises:
        IncompleteRun: a request that is needed has no record. Unscored: as write_dataset.
    """
    if chooser is None:
        rows, rejects = [row for _, row in known if row], list[Row]()
        missing = len(known) - len(rows)
    else:
        choices = chooser.choose(known)
        check_scored(storage, choices)
        rows = [one.chosen for one in choices if one.chosen]
        rejects = [row for one in choices for row in one.rejects]
        missing = sum(len(one.needed) for one in choices)
    if missing:
        raise IncompleteRun(run_id, missing)
    return rows, rejects


def check_scored(storage: Storage, choices: Iterable[Choice]) -> None:
    """Raises Unscored: one of these choices hangs on scores that are gone."""
    if unscored := {name for one in choices for name in one.unscored}:
        raise Unscored(storage, unscored)


def _invalid_rows(storage: Storage, plan: Plan) -> Iterator[Row]:
    if plan.invalid:
        yield from read_part(storage, layout.invalid(plan.run_id))


def rows_by_shard(storage: Storage, plan: Plan) -> Iterator[list[tuple[Request, Row | None]]]:
    """The requests of each shard in manifest order, each with its record's row if there is one."""
    parts = parts_by_shard(storage, plan.run_id)
    # Of shards that render what several left over, until it is their turn.
    held: dict[str, Row] = {}
    known: set[int] = set()
    for number, shard in enumerate(plan.shards):
        for other in shard.elsewhere:
            if other not in known:
                known.add(other)
                for row in read_parts(storage, parts.get(other, ())):
                    held.setdefault(row["job_id"], row)
        rows = rows_of_shard(storage, plan, number, parts.get(number, ()))
        yield [(request, row or held.pop(request.job_id, None)) for request, row in rows]


def rows_of_shard(
    storage: Storage, plan: Plan, number: int, parts: Sequence[str]
) -> list[tuple[Request, Row | None]]:
    """The same for one shard; the parts that tell of its lines have these paths."""
    if plan.shards[number].carried:
        return []  # its rows are requests of other shards' lines
    found: dict[str, Row] = {}
    with ThreadPoolExecutor(1) as beside:
        shard = beside.submit(read_shard, storage, plan.run_id, number)
        for row in read_parts(storage, parts):
            found.setdefault(row["job_id"], row)
    requests = sorted(shard.result(), key=place_of_request)
    return [(request, found.get(request.job_id)) for request in requests]


def place_of_request(request: Request) -> tuple[int, int, str, int]:
    """By manifest line, and the images of one by number: x, x#1, x#2, …, x#10."""
    return request.index, len(request.custom_id), request.custom_id, request.seed


def place_of_row(row: Row) -> tuple[int, int, str, int]:
    """The same of a dataset's row."""
    return row["index"], len(row["custom_id"]), row["custom_id"], int(row["seed"])


class _Tally:
    """Counts and times of all rows that went by."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.unreachable = self.rejects = 0
        self.stacks: Counter[tuple[Any, ...]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.first, self.last = "", ""
        self.slots = 0
        self._calls: dict[tuple[str, float], None] = {}  # of late; one may render for some shards
        self.spans: dict[str, tuple[float, float]] = {}

    def add(self, rows: list[Row]) -> None:
        """Count what became of a plan shard's requests."""
        for row in rows:
            self.status[row["status"]] += 1
            self.unreachable += row.get("code") == "input_unreachable"

    def add_times(self, rows: list[Row]) -> None:
        """Sum up what one plan shard's records took."""
        for row in rows:
            if started := row.get("batch_started"):  # not in records of before it was noted
                self._note_call((row["worker"], started), row["batch_width"])
                share = row["seconds_render"] + row.get("seconds_compile", 0.0)
                ended = started + share * row["batch_images"]
                first, last = self.spans.get(row["worker"], (started, ended))
                self.spans[row["worker"]] = (min(first, started), max(last, ended))
            # Rows of an older version, kept by a rerun, lack what is new.
            known = "mark" in row and "modes" in row
            self.stacks[_stack_of(row if known else {"modes": "", "mark": "", **row})] += 1
            self.seconds["load"] += row["seconds_load"]
            self.seconds["compile"] += row.get("seconds_compile", 0.0)
            self.seconds["render"] += row["seconds_render"] + row.get("seconds_lost", 0.0)
            self.seconds["encode"] += row["seconds_encode"]
            self.seconds["store"] += row["seconds_store"]
            at = row["created_at"]
            self.first = min(self.first or at, at)
            self.last = max(self.last, at)

    def _note_call(self, call: tuple[str, float], slots: int) -> None:
        if call not in self._calls:
            self._calls[call] = None
            self.slots += slots
            if len(self._calls) > CALLS_KEPT:
                del self._calls[next(iter(self._calls))]

    def summary(self, plan: Plan) -> Summary:
        stacks = [
            dict(zip(_SUMMARIZED, stack, strict=True)) | {"images": count}
            for stack, count in self.stacks.most_common()
        ]
        return replace(
            planned(plan, "finished"),
            requests=self.status.total(),
            rejects=self.rejects,
            done=self.status["done"],
            failed=self.status["failed"],
            rejected=self.status["rejected"],
            unreachable=self.unreachable,
            stacks=stacks,
            first_record_at=self.first,
            last_record_at=self.last,
            finished_at=now(),
            device_seconds=round(self.seconds["render"], 3),
            seconds_load=round(self.seconds["load"], 3),
            seconds_compile=round(self.seconds["compile"], 3),
            seconds_encode=round(self.seconds["encode"], 3),
            seconds_store=round(self.seconds["store"], 3),
            device_span=round(sum(last - first for first, last in self.spans.values()), 3),
            device_slots=self.slots,
        )


def now() -> str:
    """The time in UTC, ISO 8601, microseconds."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds")
