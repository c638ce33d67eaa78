"""Interactive calls: requests whose callers wait. Live state in Redis alone, none of it lasting.

A facade puts a call into its queue (jobs.calls.waiting) and waits for the answer. While it waits it
wakes workers again, every few seconds, so nothing else must remember a call: whatever dies or is
lost, the next wake finds it. A worker claims calls (jobs.calls.claims), renders and answers them.

    <prefix>calls:<model>      sorted set: "<group>:<call id>" → when it may be taken
    <prefix>call:<id>          "<seal> <JSON of the call>"; gone once it is answered, withdrawn or
                               too late
    <prefix>call-takes:<id>    how often a worker has taken it
    <prefix>calls-of:<team>    sorted set: call id → its deadline
    <prefix>answer:<id>        list of one answer, JSON; expires soon

Times are Redis's own, in Unix seconds, so that hosts need not agree on theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated

import orjson
from pydantic import Field, TypeAdapter

from jobs.broker.seals import Seal
from jobs.requests import Request


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and where its image goes: `path` below the location `out`.

    trace: the traceparent of whoever waits, if traces are on.
    """

    id: str
    team: str
    request: Request
    out: str
    path: str
    trace: Annotated[str, Field(max_length=64)] = ""

    @property
    def member(self) -> str:
        """Its name among those that wait: calls of one group can share a batch."""
        group = blake2b(orjson.dumps(self.request.key._asdict()), digest_size=8).hexdigest()
        return f"{group}:{self.id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller needs of a record; times are in seconds."""

    status: str
    code: str = ""
    message: str = ""
    seconds_render: float = 0.0
    seconds_encode: float = 0.0
    seconds_store: float = 0.0


_CALL = TypeAdapter(Call)
_ANSWER = TypeAdapter(Answer)


def encode_call(call: Call, seal: Seal) -> bytes:
    body = _CALL.dump_json(call)
    return f"{seal.sign(body.decode())} ".encode() + body


def decode_call(raw: bytes, seal: Seal) -> Call:
    """Raises ValueError if it is no call, or not of this installation."""
    signature, _, body = raw.decode().partition(" ")
    if not seal.fits(signature, body):
        raise ValueError("its seal is wrong")
    call = _CALL.validate_json(body)
    if not call.request.is_whole:
        raise ValueError("its request lacks images")
    return call


def encode_answer(answer: Answer) -> bytes:
    return _ANSWER.dump_json(answer)


def decode_answer(raw: bytes | str) -> Answer:
    """Raises ValueError if it is none."""
    return _ANSWER.validate_json(raw)


@dataclass(frozen=True, slots=True)
class CallKeys:
    """Names in Redis."""

    prefix: str

    def waiting(self, model: str) -> str:
        return f"{self.prefix}calls:{model}"

    def call(self, call_id: str) -> str:
        return f"{self.prefix}call:{call_id}"

    def takes(self, call_id: str) -> str:
        return f"{self.prefix}call-takes:{call_id}"

    def team(self, team: str) -> str:
        return f"{self.prefix}calls-of:{team}"

    def answer(self, call_id: str) -> str:
        return f"{self.prefix}answer:{call_id}"
