"""The plan of a run, as it lies in storage: an index (plan.json) and shards of requests.

A shard holds consecutive manifest lines, ordered by round and batch key. A chunk is a range of a
shard's rows that share round and model; it is the unit of queueing. Rows outside every chunk were
done by an earlier run, or filled no pipeline call: these are rendered by a later shard, which holds
nothing but such rows of those before it. Where lines choose among candidates, a round begins when
all chunks of those before it are complete, and renders only what is needed then
(jobs/output/choices.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, compress
from operator import ne
from typing import NamedTuple

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import FatalError
from jobs.formats import FORMATS, ImageFormat
from jobs.ids import COMMIT, JOB_ID
from jobs.output import layout
from jobs.output.storage import Storage
from jobs.requests import BatchKey, Candidate, Request, Rule, StoredKey
from jobs.teams import OPEN_TEAM, TEAM, Priority

SHARD_LINES = 4096
MAX_ROUNDS = 64

Place = tuple[int, int]  # a chunk: its shard, and its number in there


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [start, stop) of one shard, all of one model and round."""

    model: str
    start: int
    stop: int
    round: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard's entry in the index.

    requests: of its lines, all its rows, reused ones included; elsewhere: numbers of later shards
    that render some of these, with what others left over; carried: the rows of such a shard, which
    has no lines of its own.
    """

    requests: int
    chunks: tuple[Chunk, ...]
    carried: int = 0
    elsewhere: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return self.requests + self.carried


@dataclass(frozen=True)
class Plan:
    """The index of a run. Written after everything it names, so it exists only when all does.

    fingerprints: model name (with ":adapter" for adapters) → what its weights were when planned.
    commits: of its models' weights at the hub, where the models table does not pin them, by
        jobs.models.fingerprints.hub_name. Workers load these.
    invalid: lines left out by --skip-invalid; doubtful: lines that may not be meant; reused:
        requests whose images already existed.
    team, priority: whose turn it is goes by them; seconds: of one device, that what is left will
    take, as far as one knows; keeps: whether lines have columns that the dataset is to have.
    scorers: that give images columns, as NAME or NAME=WEIGHTS; chooses: whether lines choose among
    candidates.
    """

    run_id: str
    manifest: str
    seed: int
    created_at: str
    fingerprints: dict[str, str]
    shards: tuple[Shard, ...]
    invalid: int = 0
    reused: int = 0
    commits: dict[str, str] = field(default_factory=dict)
    team: str = OPEN_TEAM
    priority: Priority = "normal"
    seconds: float = 0.0
    keeps: bool = False
    doubtful: int = 0
    scorers: tuple[str, ...] = ()
    chooses: bool = False

    @property
    def requests(self) -> int:
        """All of its rows, candidates included that may never be needed."""
        return sum(shard.requests for shard in self.shards)

    @property
    def chunks(self) -> int:
        return sum(len(shard.chunks) for shard in self.shards)

    def chunks_of(self, rounds: range) -> int:
        """The chunks of some rounds."""
        return sum(chunk.round in rounds for shard in self.shards for chunk in shard.chunks)

    @property
    def left(self) -> int:
        """The requests that no earlier run has done. Of candidates those that are surely needed."""
        return self.rows_of(range(1))

    def until(self, last: int | None) -> int:
        """The requests that were done before, -1, and those of the rounds up to one, or of all."""
        return self.requests - (0 if last is None else self.rows_of(range(last + 1, MAX_ROUNDS)))

    def rows_of(self, rounds: range) -> int:
        """The rows of the chunks of some rounds."""
        chunks = (chunk for shard in self.shards for chunk in shard.chunks)
        return sum(chunk.stop - chunk.start for chunk in chunks if chunk.round in rounds)

    def round_after(self, done: Collection[Place]) -> int | None:
        """The first round with a chunk that is not complete; None if all are."""
        return min(
            (
                chunk.round
                for number, shard in enumerate(self.shards)
                for i, chunk in enumerate(shard.chunks)
                if (number, i) not in done
            ),
            default=None,
        )

    @property
    def models(self) -> list[str]:
        """The models that still have something to render, in order of first use. Of a run that
        only has images to score, the first that it names: one of its workers does that."""
        found = list(dict.fromkeys(c.model for shard in self.shards for c in shard.chunks))
        if self.scorers and not found:
            return [next(iter(self.fingerprints)).partition(":")[0]]
        return found

    @cached_property
    def first_numbers(self) -> list[int]:
        """For each shard, the number within the whole run of its first chunk."""
        return list(accumulate((len(shard.chunks) for shard in self.shards), initial=0))

    def number(self, shard: int, chunk: int) -> int:
        """The chunk's number within the whole run, from 0."""
        return self.first_numbers[shard] + chunk

    def places(self, model: str, start: Place = (0, 0)) -> Iterator[Place]:
        """The chunks of a model, from one place on, and of the round of that."""
        first = self.chunk(start)
        for shard in range(start[0], len(self.shards)):
            for chunk, one in enumerate(self.shards[shard].chunks):
                same = first is None or one.round == first.round
                if one.model == model and same and (shard, chunk) >= start:
                    yield shard, chunk

    def chunk(self, place: Place) -> Chunk | None:
        """The chunk at a place, if there is one."""
        number, i = place
        chunks = self.shards[number].chunks if number < len(self.shards) else ()
        return chunks[i] if i < len(chunks) else None


# The number of a row's key, or of one that differs in its guidance, and that guidance.
_KeyPlace = int | tuple[int, float | None]


class _Row(NamedTuple):
    """A request as its shard holds it."""

    index: int  # type: ignore[assignment]  # nobody looks a row up in itself
    custom_id: str
    key: _KeyPlace
    prompt: str
    negative_prompt: str
    seed: int
    format: ImageFormat
    job_id: str
    images: tuple[str, ...]
    control_images: tuple[str, ...]
    candidate: tuple[str, int, int] | None = None  # image, number, the number of its rule


@dataclass(frozen=True, slots=True)
class _ShardFile:
    keys: list[StoredKey]
    rows: list[_Row]
    rules: list[Rule] = field(default_factory=list)


_PLAN = TypeAdapter(Plan)
_SHARD = TypeAdapter(_ShardFile)


def write_plan(storage: Storage, plan: Plan) -> None:
    storage.write(layout.plan(plan.run_id), orjson.dumps(plan))


def read_plan(storage: Storage, run_id: str) -> Plan | None:
    """The run's plan; None if it was never completed.

    Raises:
        FatalError: it is no plan of that run.
    """
    path = layout.plan(run_id)
    try:
        plan = _PLAN.validate_json(storage.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _foreign(storage, path) from error
    chunks = [(shard, chunk) for shard in plan.shards for chunk in shard.chunks]
    within = all(0 <= chunk.start < chunk.stop <= shard.rows for shard, chunk in chunks)
    within &= all(0 <= n < len(plan.shards) for shard in plan.shards for n in shard.elsewhere)
    commits = all(COMMIT.fullmatch(commit) for commit in plan.commits.values())
    if plan.run_id != run_id or not within or not commits or not TEAM.fullmatch(plan.team):
        raise _foreign(storage, path)
    return plan


def encode_shard(requests: Iterable[Request]) -> bytes:
    """A shard's file: its batch keys, and a row a request, of one or more, in their order.

    Not compressed: that would be a tenth of planning's time, for a file a tenth as large as the
    smallest images.
    """
    indices, custom_ids, keys, *others, candidates = zip(*requests, strict=True)
    changes = list(map(ne, keys, keys[1:]))  # of the next row's
    stored, some = _stored(compress(keys, (True, *changes)))
    places = map(some.__getitem__, accumulate(changes, initial=0))
    # Plain tuples of a _Row's form: orjson writes no others, and they take a third of the time.
    rows: list[tuple[object, ...]] = list(zip(indices, custom_ids, places, *others, strict=True))
    rules: dict[Rule, int] = {}
    if any(candidates):
        rows = [
            (*row, (one.image, one.number, rules.setdefault(one.rule, len(rules)))) if one else row
            for row, one in zip(rows, candidates, strict=True)
        ]
    file: dict[str, object] = {"keys": stored, "rows": rows}
    return orjson.dumps(file | ({"rules": list(rules)} if rules else {}), BatchKey._asdict)


def _stored(keys: Iterable[BatchKey]) -> tuple[list[BatchKey], list[_KeyPlace]]:
    """The keys that are written, of these, and for each what a row has of it.

    Each line may have a guidance of its own: to write as many keys would make the file twice as
    large.
    """
    stored: list[BatchKey] = []
    places: list[_KeyPlace] = []
    last: tuple[object, ...] | None = None
    for key in keys:
        stem = key.stem
        if stem == last:
            places.append((len(stored) - 1, key.guidance_scale))
        else:
            places.append(len(stored))
            stored.append(key)
            last = stem
    return stored, places


def read_shard(storage: Storage, run_id: str, number: int) -> list[Request]:
    """All requests of a shard, in the order that the chunks' ranges refer to.

    Raises:
        FatalError: it is no shard of a plan, or missing.
    """
    path = layout.shard(run_id, number)
    try:
        shard = _SHARD.validate_json(storage.read(path))
        return [_request(shard, row) for row in shard.rows]
    except FileNotFoundError as error:
        raise FatalError(
            f"{storage.name(path)} is missing, which the run's plan names",
            "Give the run another output location, and submit its manifest there.",
        ) from error
    except (ValidationError, IndexError, ValueError) as error:
        raise _foreign(storage, path) from error


def _request(shard: _ShardFile, row: _Row) -> Request:
    """Raises IndexError or ValueError for what no planner wrote."""
    number, *guidance = (row.key,) if isinstance(row.key, int) else row.key
    if not JOB_ID.fullmatch(row.job_id) or row.format not in FORMATS or number < 0:
        raise ValueError(row.job_id)
    key = shard.keys[number]
    if guidance:
        key = key.with_guidance(*guidance)
    candidate: Candidate | None = None
    if row.candidate:
        image, number, rule = row.candidate
        if not JOB_ID.fullmatch(image) or number < 0 or rule < 0:
            raise ValueError(image)
        candidate = Candidate(image, number, shard.rules[rule])
    request = Request(
        row.index, row.custom_id, key, row.prompt, row.negative_prompt, row.seed,
        row.format, row.job_id, row.images, row.control_images, candidate,
    )  # fmt: skip
    if not request.is_whole:
        raise ValueError(row.job_id)
    return request


def _foreign(storage: Storage, path: str) -> FatalError:
    return FatalError(
        f"{storage.name(path)} is no plan that imagemill wrote",
        "Give the run another output location, and submit its manifest there.",
    )
