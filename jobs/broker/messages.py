"""Messages as they lie in Redis. Whoever reaches it can write anything, so each one is checked.

Only what the dispatcher sends gets through: one of four tasks, ids and numbers of bounded size as
plain JSON, and none of Celery's other abilities (a delay, a time limit, callbacks, compression).
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.broker.seals import NO_SEAL, Seal

MAX_BYTES = 32 * 1024
QUARANTINE = "quarantine"  # key of the list of messages that were put aside
QUARANTINED = 1000  # of which so many are kept
SHOWN_BYTES = 1000  # of each

RENDER = "imagemill.render"
FEED = "imagemill.feed"
FINALIZE = "imagemill.finalize"
WAKE = "imagemill.wake"

_STRICT = ConfigDict(strict=True)

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Epoch = Annotated[int, Field(ge=0, lt=2**53)]
ModelName = Annotated[str, Field(min_length=1, max_length=4096)]

_ARGUMENTS: dict[str, TypeAdapter[Any]] = {
    RENDER: TypeAdapter(tuple[RunId, Epoch, Number, Number], config=_STRICT),
    FEED: TypeAdapter(tuple[RunId, Epoch, Number, ModelName], config=_STRICT),
    FINALIZE: TypeAdapter(tuple[RunId, Epoch], config=_STRICT),
    WAKE: TypeAdapter(tuple[()], config=_STRICT),
}


class _Headers(BaseModel):
    task: Literal["imagemill.render", "imagemill.feed", "imagemill.finalize", "imagemill.wake"]
    id: Annotated[str, Field(max_length=64)]
    eta: None = None
    expires: None = None
    timelimit: tuple[None, None] = (None, None)
    compression: None = None
    seal: Annotated[str, Field(max_length=64)] = ""


class _DeliveryInfo(BaseModel):
    exchange: Literal[""]
    routing_key: Annotated[str, Field(max_length=256)]


class _Properties(BaseModel):
    delivery_tag: Annotated[str, Field(max_length=64)]
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]
    priority: Literal[0] = 0


class _Envelope(BaseModel):
    body: str
    headers: _Headers
    properties: _Properties
    content_type: Annotated[Literal["application/json"], Field(alias="content-type")]
    content_encoding: Annotated[Literal["utf-8"], Field(alias="content-encoding")]


class _Embed(BaseModel):
    callbacks: None = None
    errbacks: None = None
    chain: None = None
    chord: None = None


_BODY: TypeAdapter[tuple[list[Any], dict[str, Any], _Embed]] = TypeAdapter(
    tuple[list[Any], Annotated[dict[str, Any], Field(max_length=0)], _Embed]
)


def sign(message: dict[str, Any], seal: Seal) -> None:
    """Seal a message as kombu is about to put it into a queue."""
    headers = message["headers"]
    headers["seal"] = seal.sign(headers["task"], message["body"])


def parse(raw: bytes, seal: Seal = NO_SEAL) -> tuple[str, tuple[Any, ...]]:
    """The task of a message and its arguments.

    Raises:
        ValueError: it is not one of ours; the text says why.
    """
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{len(raw)} bytes are more than {MAX_BYTES}")
    try:
        envelope = _Envelope.model_validate_json(raw)
        content = base64.b64decode(envelope.body, validate=True)
        arguments, _, _ = _BODY.validate_json(content)
        task = envelope.headers.task
        if not seal.fits(envelope.headers.seal, task, envelope.body):
            raise ValueError("it was not sent by this installation: its seal is wrong")
        return task, _ARGUMENTS[task].validate_python(tuple(arguments))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    except binascii.Error as error:
        raise ValueError(f"body: {error}") from error


def put_aside(raw: bytes, queue: str, reason: str) -> bytes:
    """What the quarantine keeps of a message: JSON with its queue, its beginning and the reason."""
    beginning = raw[:SHOWN_BYTES].decode("utf-8", "replace")
    return orjson.dumps({"queue": queue, "reason": reason, "bytes": len(raw), "message": beginning})
