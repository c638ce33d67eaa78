"""Bodies are read strictly."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from producer.api.wire import reading
from producer.planning.strict_json import parse_json


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[" * 100_000, "too deeply"),
        (b"[" * 40 + b"]" * 40, "too deeply"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": "\xff"}', "utf-8"),
        (b"", "Expecting value"),
        (b'{"a": 1} x', "Extra data"),
        (b"[" + b"[]," * 7_000_000 + b"[]]", "too many values"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(60_000)) + b',"1":1}', "256 keys"),
        (b"[" + b"0," * 300 + b"0]", "256 items"),
        (b'{"' + b"k" * 10_000_000 + b'":1,"' + b"k" * 10_000_000 + b'":1}', "appears twice"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_surprises_are_refused(raw: bytes, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(json.JSONDecodeError, match=reason):
        parse_json(raw)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": [1, {"b": None}]},
        "text",
        2**64,
        {"prompt": "," * 32_768, "negative": "[" * 32_768},
    ],
)
def test_plain_json_is_read(content: Any) -> None:
    assert parse_json(json.dumps(content).encode()) == content


def test_a_body_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it has a deadline, not each piece."""
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.2)

    async def drip() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        receive = reading._in_time(drip)
        async with asyncio.timeout(10):
            while True:
                await receive()

    with pytest.raises(HTTPException) as told:
        asyncio.run(read())
    assert told.value.status_code == 408
