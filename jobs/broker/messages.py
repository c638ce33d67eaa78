"""Messages as they lie in Redis: what one looks like is known here alone.

Whoever reaches Redis can write anything into it. So a message is not filtered but made anew:
`parse` takes four checked fields out of it (one of four tasks, its arguments, which are ids and
numbers of bounded size, an id and a queue), and Celery sees only what `make` writes of those.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from uuid import uuid4

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.broker.seals import NO_SEAL, Seal
from jobs.errors import plain

MAX_BYTES = 32 * 1024
QUARANTINE = "quarantine"  # key of the list of messages that were put aside
QUARANTINED = 1000  # of which so many are kept
SHOWN_BYTES = 1000  # of each

RENDER: Final = "imagemill.render"
FEED: Final = "imagemill.feed"
FINALIZE: Final = "imagemill.finalize"
WAKE: Final = "imagemill.wake"

Task = Literal["imagemill.render", "imagemill.feed", "imagemill.finalize", "imagemill.wake"]

_STRICT = ConfigDict(strict=True, extra="forbid")

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Epoch = Annotated[int, Field(ge=0, lt=2**53)]
ModelName = Annotated[str, Field(min_length=1, max_length=4096)]

_ARGUMENTS: dict[str, TypeAdapter[Any]] = {
    RENDER: TypeAdapter(tuple[RunId, Epoch, Number, Number], config=ConfigDict(strict=True)),
    FEED: TypeAdapter(tuple[RunId, Epoch, ModelName], config=ConfigDict(strict=True)),
    FINALIZE: TypeAdapter(tuple[RunId, Epoch], config=ConfigDict(strict=True)),
    WAKE: TypeAdapter(tuple[()], config=ConfigDict(strict=True)),
}


@dataclass(frozen=True, slots=True)
class Message:
    """A task for whoever reads a queue. `id` is its own; `arguments` are those of worker/tasks.py.

    redelivered: it was with a worker before.
    """

    task: Task
    arguments: tuple[Any, ...]
    queue: str
    id: str = field(default_factory=lambda: uuid4().hex)
    redelivered: bool = False


def make(message: Message, seal: Seal = NO_SEAL) -> bytes:
    """A message as Celery's protocol 2 and kombu's Redis transport read it."""
    # Celery's callbacks, errbacks, chain and chord: we have none.
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = base64.b64encode(orjson.dumps([message.arguments, {}, embed])).decode()
    again = {"redelivered": True} if message.redelivered else {}
    return orjson.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": message.task,
                "id": message.id,
                "seal": seal.sign(message.task, message.id, message.queue, body),
                **again,
            },
            "properties": {
                "body_encoding": "base64",
                "delivery_info": {"exchange": "", "routing_key": message.queue, **again},
                # By which kombu keeps what a worker holds: nobody else may know it beforehand.
                "delivery_tag": uuid4().hex,
            },
        }
    )


class _Headers(BaseModel):
    model_config = _STRICT

    lang: Literal["py"]
    task: Task
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    seal: Annotated[str, Field(max_length=64)]
    redelivered: bool = False


class _DeliveryInfo(BaseModel):
    model_config = _STRICT

    exchange: Literal[""]
    routing_key: Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,100}$")]
    redelivered: bool = False


class _Properties(BaseModel):
    model_config = _STRICT

    body_encoding: Literal["base64"]
    delivery_info: _DeliveryInfo
    delivery_tag: Annotated[str, Field(max_length=64)]


class _Envelope(BaseModel):
    model_config = _STRICT

    body: str
    content_encoding: Annotated[Literal["utf-8"], Field(alias="content-encoding")]
    content_type: Annotated[Literal["application/json"], Field(alias="content-type")]
    headers: _Headers
    properties: _Properties


class _Embed(BaseModel):
    model_config = _STRICT

    callbacks: None
    errbacks: None
    chain: None
    chord: None


_BODY: TypeAdapter[tuple[list[Any], dict[str, Any], _Embed]] = TypeAdapter(
    tuple[list[Any], Annotated[dict[str, Any], Field(max_length=0)], _Embed]
)


def parse(raw: bytes, seal: Seal = NO_SEAL, queue: str | None = None) -> Message:
    """The message that lies in a queue. queue: that one's name, where it is known.

    Raises:
        ValueError: it is not one of ours; the text says why.
    """
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        envelope = _Envelope.model_validate_json(raw)
        content = base64.b64decode(envelope.body, validate=True)
        arguments, _, _ = _BODY.validate_json(content)
        headers, delivery = envelope.headers, envelope.properties.delivery_info
        signed = (headers.task, headers.id, delivery.routing_key, envelope.body)
        if not seal.fits(headers.seal, *signed):
            raise ValueError("it was not sent by this installation: its seal is wrong")
        if queue not in (None, delivery.routing_key):
            raise ValueError(f"it belongs into {delivery.routing_key}")
        return Message(
            headers.task,
            _ARGUMENTS[headers.task].validate_python(tuple(arguments)),
            delivery.routing_key,
            headers.id,
            headers.redelivered,
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = plain(first["msg"])
        raise ValueError(f"{where}: {reason}" if where else reason) from error
    except (binascii.Error, RecursionError) as error:
        raise ValueError(f"body: {error}") from error


def parse_held(raw: bytes, seal: Seal = NO_SEAL) -> Message:
    """The message that kombu notes as held by a worker: [message, exchange, routing key].

    Raises:
        ValueError: it is not one of ours.
    """
    if len(raw) > 2 * MAX_BYTES:
        raise ValueError(f"it has more than {2 * MAX_BYTES} bytes")
    held = orjson.loads(raw)
    if not isinstance(held, list) or len(held) != 3:
        raise ValueError("it is no message that a worker holds")
    return parse(orjson.dumps(held[0]), seal)


def put_aside(raw: bytes, queue: str, reason: str) -> bytes:
    """What the quarantine keeps of a message: JSON with its queue, its beginning and the reason.

    bytes: that were read; of a longer one jobs/broker/transport.py reads MAX_VALUE and one.
    """
    beginning = raw[:SHOWN_BYTES].decode("utf-8", "replace")
    return orjson.dumps({"queue": queue, "reason": reason, "bytes": len(raw), "message": beginning})
