"""A batch's requests ⇄ a manifest and its records, line by line.

A request for n images is n manifest lines, of which the first has its custom_id.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any, Literal

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import InvalidRequest, LineError
from jobs.output.dataset import rows_by_shard
from jobs.output.plan import Plan
from jobs.output.storage import Storage
from jobs.requests import Body, ImageInput, Request
from producer.api.openai.bodies import (
    CreateImageRequest,
    EditImageBodyJsonParam,
    ImageRefParam,
    ImageRequest,
)
from producer.api.wire.errors import ApiError, error_json
from producer.api.wire.reading import Given, parse_json
from producer.planning.manifest import BatchLine, CustomId

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
Load = Callable[[ImageRefParam], str]  # an input → the reference that the manifest holds
Show = Callable[[str], dict[str, str]]  # an image's path → {"url": …} or {"b64_json": …}

LINE_BYTES = 70 * 2**20  # one image of 50 MiB as base64
SHOWN_ERRORS = 100


class _Line(Given):
    custom_id: CustomId
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the output needs to know of a request. `images` are consecutive manifest lines."""

    custom_id: str
    images: int
    response_format: str


_ASKED = TypeAdapter(Asked)


@dataclass(frozen=True, slots=True)
class Translation:
    """lines: for each manifest line the line that it comes from; errors: the first ones."""

    requests: int
    lines: list[int]
    errors: list[LineError]


def translate(
    source: IO[bytes], manifest: IO[bytes], asked: IO[bytes], endpoint: Endpoint, load: Load
) -> Translation:
    """Write the manifest of a batch, and beside it what was asked for."""
    requests, lines, errors = 0, list[int](), list[LineError]()
    number = 0
    while (raw := source.readline(LINE_BYTES + 1)) and len(errors) < SHOWN_ERRORS:
        number += 1
        if raw.isspace():
            continue
        try:
            custom_id, wanted = _read(raw, endpoint)
            written = _manifest_lines(custom_id, wanted, endpoint, load)
        except ValidationError:  # "<custom_id>#2" is an id as well
            errors.append(
                LineError(number, custom_id, "custom_id", "is too long for so many images")
            )
            continue
        except (InvalidRequest, ApiError) as error:
            errors.append(LineError(number, "", error.field, error.message))
            continue
        manifest.write(b"".join(line + b"\n" for line in written))
        note = Asked(custom_id, len(written), wanted.response_format or "url")
        asked.write(orjson.dumps(note) + b"\n")
        lines += [number] * len(written)
        requests += 1
    if not requests and not errors:
        errors.append(LineError(1, "", "", "the file holds no request"))
    return Translation(requests, lines, errors)


def _read(raw: bytes, endpoint: Endpoint) -> tuple[str, ImageRequest]:
    if len(raw) > LINE_BYTES:
        raise InvalidRequest("", f"the line is longer than {LINE_BYTES >> 20} MiB")
    model = EditImageBodyJsonParam if endpoint == "/v1/images/edits" else CreateImageRequest
    try:
        line = _Line.model_validate(parse_json(raw))
        if line.url != endpoint:
            raise InvalidRequest("url", f"must be the batch's endpoint, {endpoint}")
        return line.custom_id, model.model_validate(line.body)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(".".join(map(str, first["loc"][:1])), first["msg"]) from error
    except ValueError as error:
        raise InvalidRequest("", f"not JSON: {error}") from error


def _manifest_lines(
    custom_id: str, wanted: ImageRequest, endpoint: Endpoint, load: Load
) -> list[bytes]:
    if not wanted.is_final:
        name = "output_format" if wanted.output_format == "webp" else "output_compression"
        raise InvalidRequest(name, "is not supported in a batch", "unsupported")
    body = wanted.to_body()
    if isinstance(wanted, EditImageBodyJsonParam):
        if wanted.mask:
            raise InvalidRequest("mask", "masks are not supported here", "unsupported")
        images = [ImageInput(image=load(one)) for one in wanted.images]
        body = body.model_copy(update={"image": images})
    return [
        _manifest_line(custom_id if i == 0 else f"{custom_id}#{i + 1}", body, i, endpoint)
        for i in range(wanted.n or 1)
    ]


def _manifest_line(custom_id: str, body: Body, number: int, endpoint: Endpoint) -> bytes:
    if body.seed is not None:
        body = body.model_copy(update={"seed": (body.seed + number) % 2**64})
    line = BatchLine(custom_id=custom_id, method="POST", url=endpoint, body=body)
    return line.model_dump_json(exclude_none=True).encode()


def results(
    storage: Storage,
    plan: Plan,
    asked: IO[bytes],
    created: int,
    unfinished: str,
    shows: Mapping[str, Show],
) -> Iterator[tuple[bool, bytes]]:
    """(whether it succeeded, its line of output) of each request, in the order of the file.

    storage: the run's output; unfinished: the code of requests without a record, for example
    "batch_expired"; shows: for each response_format, how an image is shown.
    """
    rows = chain.from_iterable(rows_by_shard(storage, plan))
    for raw in asked:
        wanted = _ASKED.validate_json(raw)
        own = list(islice(rows, wanted.images))
        yield _result(wanted, own, created, unfinished, shows[wanted.response_format])


def _result(
    wanted: Asked,
    rows: list[tuple[Request, dict[str, Any] | None]],
    created: int,
    unfinished: str,
    show: Show,
) -> tuple[bool, bytes]:
    first = rows[0][0].job_id
    line = {"id": f"batch_req_{first}", "custom_id": wanted.custom_id}
    bad = [row for _, row in rows if row is None or row["status"] != "done"]
    if not bad:
        data = [show(row["file_name"]) | {"seed": request.seed} for request, row in rows if row]
        body: dict[str, Any] = {"created": created, "data": data}
        answer: dict[str, Any] = {"status_code": 200, "request_id": first, "body": body}
        return True, _dump(line | {"response": answer, "error": None})
    if bad[0] is None:
        error = {"code": unfinished, "message": "this request was not executed"}
        return False, _dump(line | {"response": None, "error": error})
    status = 422 if bad[0]["status"] == "rejected" else 500
    problem = ApiError(status, bad[0]["code"], bad[0]["message"])
    answer = {"status_code": status, "request_id": first, "body": error_json(problem, openai=True)}
    return False, _dump(line | {"response": answer, "error": None})


def _dump(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def b64_of(storage: Storage) -> Show:
    """Images in the output itself."""
    return lambda path: {"b64_json": b64encode(storage.read(path)).decode()}
