"""A batch's requests ⇄ a manifest and its records, line by line.

A request is one manifest line. One whose body is wrong is none, and has its error instead; what is
no request at all fails the whole batch.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from typing import IO, Any, Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import InvalidRequest, LineError
from jobs.ids import job_id
from jobs.output import layout
from jobs.output.dataset import rows_by_shard
from jobs.output.plan import Plan
from jobs.output.records import Row, read_part
from jobs.output.storage import Storage
from jobs.requests import MAX_CUSTOM_ID, ImageInput
from producer.api.openai.bodies import (
    CreateImageRequest,
    EditImageBodyJsonParam,
    Image,
    ImageRefParam,
    ImageRequest,
    ImagesResponse,
    ToldQuality,
)
from producer.api.wire.errors import ApiError, as_answer, culprit_of, error_json
from producer.api.wire.reading import Given, refused
from producer.planning.manifest import BatchRecipe, CustomId
from producer.planning.recipes import Recipe, name_of
from producer.planning.strict_json import describe, parse_json

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
Load = Callable[[ImageRefParam], str]  # an input → the reference that the manifest holds
Show = Callable[[str], dict[str, str]]  # an image's path → {"url": STORED…} or {"b64_json": …}

STORED = "stored:"  # begins a path below the store, where readers are shown a URL
_STORED_URL = re.compile(rb'"url":"stored:([^"\\]+)"')

LINE_BYTES = 70 * 2**20  # one image of 50 MiB as base64
MAX_REQUESTS = 50_000  # as OpenAI's
SHOWN_ERRORS = 100


class _Line(Given):
    custom_id: CustomId
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a body was refused. `param` is the field as its caller wrote it."""

    status: int
    code: str
    message: str
    param: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the output needs to know of a request. Without a problem it is a manifest line."""

    custom_id: str
    response_format: str = ""
    problem: Problem | None = None
    quality: ToldQuality | None = None


_ASKED = TypeAdapter(Asked)


@dataclass(frozen=True, slots=True)
class Translation:
    """Counts of requests, those that were refused among them; the first errors of the file."""

    requests: int
    refused: int
    errors: list[LineError]


def translate(
    source: IO[bytes], manifest: IO[bytes], asked: IO[bytes], endpoint: Endpoint, load: Load
) -> Translation:
    """Write the manifest of a batch, and beside it what was asked for.

    load: is called for each input; what else it raises ends the translation.
    """
    errors = list[LineError]()
    known = set[str]()
    number = refused = 0
    while (raw := source.readline(LINE_BYTES + 1)) and len(errors) < SHOWN_ERRORS:
        number += 1
        if raw.isspace():
            continue
        try:
            line = _read(raw, endpoint)
            if line.custom_id in known:
                raise InvalidRequest("custom_id", f"{line.custom_id!r} stands on an earlier line")
            if len(known) == MAX_REQUESTS:
                raise InvalidRequest("", f"the file has more than {MAX_REQUESTS:,} requests")
        except InvalidRequest as error:
            errors.append(LineError(number, "", error.field, error.reason))
            if len(known) == MAX_REQUESTS:
                break
            continue
        known.add(line.custom_id)
        try:
            wanted = _body(line)
            written = _manifest_line(line.custom_id, wanted, endpoint, load)
        except InvalidRequest as error:
            note = Asked(line.custom_id, problem=_problem(error))
            refused += 1
        else:
            manifest.write(written + b"\n")
            note = Asked(line.custom_id, wanted.shown_as, quality=wanted.told_quality)
        asked.write(orjson.dumps(note) + b"\n")
    if not known and not errors:
        errors.append(LineError(1, "", "", "the file holds no request"))
    return Translation(len(known), refused, errors)


def _read(raw: bytes, endpoint: Endpoint) -> _Line:
    """Raises InvalidRequest if it is no request of the endpoint."""
    if len(raw) > LINE_BYTES:
        raise InvalidRequest("", f"the line is longer than {LINE_BYTES >> 20} MiB")
    try:
        line = _Line.model_validate(parse_json(raw))
    except ValidationError as error:
        raise _invalid(error) from error
    except ValueError as error:
        raise InvalidRequest("", describe(error)) from error
    if line.url != endpoint:
        raise InvalidRequest("url", f"must be the batch's endpoint, {endpoint}")
    return line


def _body(line: _Line) -> ImageRequest:
    """Raises InvalidRequest if the body is none of its endpoint."""
    model = EditImageBodyJsonParam if line.url == "/v1/images/edits" else CreateImageRequest
    try:
        return model.model_validate(line.body)
    except ValidationError as error:
        raise _invalid(error) from error


def _invalid(error: ValidationError) -> InvalidRequest:
    culprit = culprit_of(refused(error))
    inner = culprit.place.removeprefix(culprit.field)
    return InvalidRequest(culprit.field, f"{inner}: {culprit.reason}" if inner else culprit.reason)


def _problem(error: InvalidRequest) -> Problem:
    answer = as_answer(error)
    return Problem(answer.status, answer.code, answer.message, answer.field)


def _manifest_line(custom_id: str, wanted: ImageRequest, endpoint: Endpoint, load: Load) -> bytes:
    if not wanted.is_final:
        name = "output_format" if wanted.output_format == "webp" else "output_compression"
        raise InvalidRequest(name, "is not supported in a batch", "unsupported")
    body: dict[str, Any] = dict(wanted.to_body())
    if isinstance(wanted, EditImageBodyJsonParam):
        body["image"] = [ImageInput(image=load(one)) for one in wanted.images]
        if wanted.mask:
            body["mask_image"] = ImageInput(image=load(wanted.mask))
    if len(name_of(custom_id, (wanted.n or 1) - 1)) > MAX_CUSTOM_ID:
        raise InvalidRequest("custom_id", f"is too long for {wanted.n} images")
    recipe = Recipe(**body, n=wanted.n)
    line = BatchRecipe(custom_id=custom_id, method="POST", url=endpoint, body=recipe)
    return line.model_dump_json(exclude_none=True).encode()


def results(
    asked: IO[bytes],
    settled: Iterator[Settled],
    created: int,
    unfinished: str,
    shows: Mapping[str, Show],
) -> Iterator[tuple[bool, bytes]]:
    """(whether it succeeded, its line of output) of each request, in the order of the file.

    settled: of all images, line by line; unfinished: the code of requests without a record, for
    example "batch_expired"; shows: for each response_format, how an image is shown.
    """
    by_line = groupby(settled, attrgetter("index"))
    for raw in asked:
        wanted = _ASKED.validate_json(raw)
        if wanted.problem:
            yield False, _refusal(wanted.custom_id, wanted.problem)
        else:
            own = list(next(by_line)[1])
            yield _result(wanted, own, created, unfinished, shows[wanted.response_format])


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one image.

    index: of its manifest line; row: its record's, or what errors.jsonl says of its line.
    """

    index: int
    job_id: str
    seed: int
    row: Row | None


def settled_lines(storage: Storage, run_id: str, plan: Plan | None) -> Iterator[Settled]:
    """Every image of a run, line by line; without a plan no line was worth rendering."""
    rendered = (
        Settled(request.index, request.job_id, request.seed, row)
        for shard in (rows_by_shard(storage, plan) if plan else ())
        for request, row in shard
    )
    refused = (
        Settled(row["index"], "", 0, row) for row in read_part(storage, layout.invalid(run_id))
    )
    return merge(rendered, refused, key=lambda one: one.index)


def with_urls(lines: Iterable[bytes], folder: str, sign: Callable[[str], str]) -> Iterator[bytes]:
    """Lines of an output file as they are read: stored paths below `folder` have become URLs.

    No text of a caller looks like one: in JSON its quotes have a backslash.
    """

    def url(found: re.Match[bytes]) -> bytes:
        path = found[1].decode()
        return b'"url":' + orjson.dumps(sign(path)) if path.startswith(folder) else found[0]

    for line in lines:
        yield _STORED_URL.sub(url, line)


def _result(
    wanted: Asked, lines: list[Settled], created: int, unfinished: str, show: Show
) -> tuple[bool, bytes]:
    first = lines[0].job_id
    line = {"id": f"batch_req_{first}", "custom_id": wanted.custom_id}
    bad = [one.row for one in lines if one.row is None or one.row["status"] != "done"]
    if not bad:
        rows = [(one.row, one.seed) for one in lines if one.row]
        alike = rows[0][0]
        body = ImagesResponse(
            created=created,
            data=[Image(**show(row["file_name"]), seed=seed) for row, seed in rows],
            output_format="jpeg" if alike["response_format"] == "jpeg" else "png",
            size=f"{alike['width']}x{alike['height']}",
            quality=wanted.quality,
        ).model_dump(exclude_none=True)
        answer: dict[str, Any] = {"status_code": 200, "request_id": first, "body": body}
        return True, _dump(line | {"response": answer, "error": None})
    if bad[0] is None:
        error = {"code": unfinished, "message": "this request was not executed"}
        return False, _dump(line | {"response": None, "error": error})
    return False, _refusal(wanted.custom_id, _problem_of(bad[0]), first)


def _problem_of(row: Row) -> Problem:
    """What a caller is told of a request without an image."""
    if row["status"] == "invalid":
        # Lines of the manifest are nothing that a caller knows.
        message = row["message"].removeprefix(f"line {row['index'] + 1}: ")
        field = row.get("field", "")  # absent from runs planned before rows said it
        return _problem(InvalidRequest(field, message.removeprefix(f"{field}: ")))
    return Problem(422 if row["status"] == "rejected" else 500, row["code"], row["message"])


def _refusal(custom_id: str, problem: Problem, name: str = "") -> bytes:
    name = name or job_id(custom_id.encode())
    error = ApiError(problem.status, problem.code, problem.message, problem.param)
    body = error_json(error, openai=True)
    answer = {"status_code": problem.status, "request_id": name, "body": body}
    line = {"id": f"batch_req_{name}", "custom_id": custom_id}
    return _dump(line | {"response": answer, "error": None})


def _dump(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def b64_of(storage: Storage) -> Show:
    """Images in the output itself."""
    return lambda path: {"b64_json": b64encode(storage.read(path)).decode()}
