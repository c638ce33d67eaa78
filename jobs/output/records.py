"""What became of one request, with all that is needed to render it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from itertools import islice
from typing import Any, Literal, TypedDict, cast

import orjson

from jobs.errors import FatalError
from jobs.ids import JOB_ID
from jobs.output import layout
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.requests import Request

RecordStatus = Literal["done", "rejected", "failed"]
Score = str | int | float | bool
Scores = Mapping[str, Score]  # column → an image's; without those that it has not

PARTS_AHEAD = 16

MAX_DEPTH = 16  # of the values in a row


class Row(TypedDict, total=False):
    """A record as parts and the dataset hold it: flat, without nulls, the seed as a string.

    A line that was left out has `custom_id`, `index`, `status` "invalid", `code`, `message` and
    `field`, the first that is wrong, "" for none.
    """

    file_name: str
    field: str
    custom_id: str
    index: int
    job_id: str
    status: Literal["done", "rejected", "failed", "invalid"]
    sha256: str
    bytes: int
    code: str
    message: str
    task: str
    prompt: str
    prompt_tokens_cut: int
    negative_prompt: str
    guidance_scale: float
    strength: float
    input_images: list[str]
    mask_image: str
    control_images: list[str]
    controlnet_weights: list[float]
    model: str
    adapter: str
    seed: str
    width: int
    height: int
    num_inference_steps: int
    response_format: str
    repo: str
    revision: str
    fingerprint: str
    pipeline: str
    scheduler: str
    dtype: str
    device: str
    device_name: str
    batch_width: int
    threads: int
    versions: str
    modes: str
    mark: str
    worker: str
    attempt: int
    seconds_load: float
    seconds_compile: float
    seconds_render: float
    seconds_lost: float
    seconds_encode: float
    seconds_store: float
    batch_started: float
    batch_images: int
    created_at: str
    candidates: int


# No others may be called so; those that no record has are an export's.
OWN_COLUMNS = frozenset((*Row.__annotations__, "image", "key", "signed_sha256"))

# Of where and when it was rendered: no pixel hangs on them.
INCIDENTAL = frozenset(
    (
        "worker", "attempt", "created_at", "batch_started", "batch_images", "seconds_load",
        "seconds_compile", "seconds_render", "seconds_lost", "seconds_encode", "seconds_store",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stack:
    """What rendered a request, apart from the request: everything that may change a byte.

    fingerprint: of the weights and options; device: "cpu" or "cuda"; device_name: the product;
    batch_width: images a pipeline call, padding included; threads: CPU threads of the process;
    versions: "torch 2.13.0, diffusers 0.42.1, …"; modes: what else was not as usual, "" if nothing:
    "vae_slicing" where memory was short; mark: in the file, that a model made it ("xmp"),
    and of what ("xmp, parameters"); or "".
    """

    repo: str
    revision: str
    fingerprint: str
    pipeline: str
    scheduler: str
    dtype: str
    device: str
    device_name: str
    batch_width: int
    threads: int
    versions: str
    modes: str = ""
    mark: str = ""


STACK_FIELDS = tuple(one.name for one in fields(Stack))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each stage. `render` is the pipeline call's time divided by its requests.

    compile: that torch.compile took within the call, divided likewise; `render` is without it.
    lost: the request's share of calls before that one, which failed and were made again with fewer
    requests. started: of the last call, in seconds of its host's monotonic clock; images: how many
    requests shared it. So it ended at started + images * (compile + render). Both are 0 where there
    was none.
    """

    load: float = 0.0
    compile: float = 0.0
    render: float = 0.0
    lost: float = 0.0
    encode: float = 0.0
    store: float = 0.0
    started: float = 0.0
    images: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One request's end. Done records have a file; the others have a code and a message.

    sha256 and bytes are of the stored file; created_at is UTC, ISO 8601; prompt_tokens_cut counts
    the tokens at the prompt's end that the model's text encoder never read. scores: by the key of
    a scorer; they lie beside records, and no row has them.
    """

    request: Request
    status: RecordStatus
    stack: Stack
    worker: str
    attempt: int
    created_at: str
    timings: Timings = Timings()
    file_name: str = ""
    sha256: str = ""
    bytes: int = 0
    code: str = ""
    message: str = ""
    prompt_tokens_cut: int = 0
    scores: Mapping[str, Scores] = field(default_factory=dict)

    def row(self) -> Row:
        """The flat form that parts and the dataset hold.

        No nulls, and the seed a string: `datasets` turns a column of nulls and big integers into
        float64.
        """
        request, key = self.request, self.request.key
        row: dict[str, Any] = {"file_name": self.file_name} if self.status == "done" else {}
        row |= {
            "custom_id": request.custom_id,
            "index": request.index,
            "job_id": request.job_id,
            "status": self.status,
        }
        if self.status == "done":
            row |= {"sha256": self.sha256, "bytes": self.bytes}
        else:
            row |= {"code": self.code, "message": self.message}
        for name in ("guidance_scale", "strength"):
            if (value := getattr(key, name)) is not None:
                row[name] = value
        if key.negative:
            row["negative_prompt"] = request.negative_prompt
        # Not "image": a loaded dataset has that column already.
        if request.images:
            row["input_images"] = list(request.inputs)
        if mask := request.mask:
            row["mask_image"] = mask
        if request.control_images:
            row["control_images"] = list(request.control_images)
            row["controlnet_weights"] = list(key.controlnet_weights)
        row |= {
            "task": key.task,
            "prompt": request.prompt,
            "prompt_tokens_cut": self.prompt_tokens_cut,
            "model": key.model,
            "adapter": key.adapter,
            "seed": str(request.seed),
            "width": key.width,
            "height": key.height,
            "num_inference_steps": key.steps,
            "response_format": request.format,
            **_stack_row(self.stack),
            "worker": self.worker,
            "attempt": self.attempt,
            "seconds_load": self.timings.load,
            "seconds_compile": self.timings.compile,
            "seconds_render": self.timings.render,
            "seconds_lost": self.timings.lost,
            "seconds_encode": self.timings.encode,
            "seconds_store": self.timings.store,
            "batch_started": self.timings.started,
            "batch_images": self.timings.images,
            "created_at": self.created_at,
        }
        return cast("Row", row)


@cache
def _stack_row(stack: Stack) -> dict[str, Any]:
    return asdict(stack)  # slow, and the same for all images that a process renders


def encode_part(rows: Iterable[Row]) -> bytes:
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def write_part(storage: Storage, path: str, records: Iterable[Record]) -> None:
    storage.write(path, encode_part(record.row() for record in records))


def read_part(storage: Storage, path: str) -> Iterator[Row]:
    """The rows of a part, or of a dataset's metadata.jsonl or errors.jsonl.

    What becomes part of a path is what we would have written: anybody can write a dataset.

    Raises:
        FatalError: a row is none of ours.
    """
    with storage.reader(path) as lines:
        for line in lines:
            yield read_row(line, storage.name(path))


def read_parts(storage: Storage, paths: Iterable[str]) -> Iterator[Row]:
    """The rows of several parts in order; some are read ahead, as many as fast as one far away.

    Raises: as read_part.
    """
    left = iter(paths)
    with ThreadPoolExecutor(PARTS_AHEAD) as pool:
        while some := list(islice(left, PARTS_AHEAD)):
            for path, data in zip(some, pool.map(storage.read, some), strict=True):
                for line in data.splitlines():
                    yield read_row(line, storage.name(path))


def read_row(line: bytes, source: str) -> Row:
    """One line of a part or a dataset; `source` is where it lies, for the message.

    Raises:
        FatalError: as read_part.
    """
    try:
        row = orjson.loads(line)
        named = row["status"] == "invalid" or JOB_ID.fullmatch(row["job_id"])
        named = named and (row["status"] != "done" or layout.is_image(row["file_name"]))
        if named and not (line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deep(row)):
            return cast("Row", row)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        pass
    raise FatalError(
        f"{source} holds what imagemill did not write: {line[:80]!r}",
        "Remove what wrote it, then run the manifest again.",
    )


def _is_deep(row: object) -> bool:
    """Whether its values are nested deeper than any of ours: Python could not compare them."""
    level = [row]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def parts_by_shard(storage: Storage, run_id: str) -> dict[int, list[str]]:
    """The run's parts, complete and interrupted, grouped by plan shard; other files are none."""
    return group_parts(run_id, storage.list(layout.parts(run_id)))


def parts_by_lines(plan: Plan, parts: Mapping[int, list[str]]) -> dict[int, list[str]]:
    """Parts grouped by the plan shard whose lines they tell of, given those by plan shard."""
    found = {
        number: [path for one in (number, *shard.elsewhere) for path in parts.get(one, ())]
        for number, shard in enumerate(plan.shards)
        if not shard.carried
    }
    return {number: paths for number, paths in found.items() if paths}


def group_parts(run_id: str, names: Iterable[str]) -> dict[int, list[str]]:
    """The same, given what lies in the folder of the parts."""
    folder = layout.parts(run_id)
    found: dict[int, list[str]] = {}
    for name in names:
        if (shard := layout.shard_of_part(name)) is not None:
            found.setdefault(shard, []).append(f"{folder}/{name}")
    return found


def chunks_done(storage: Storage, plan: Plan) -> set[tuple[int, int]]:
    """(shard, chunk) of every chunk of the plan that is complete, as storage says."""
    names = storage.list(layout.parts(plan.run_id))
    found = {chunk for name in names if (chunk := layout.chunk_of_done_part(name))}
    chunks = [len(shard.chunks) for shard in plan.shards]
    return {(s, c) for s, c in found if s < len(chunks) and c < chunks[s]}
