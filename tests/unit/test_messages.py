"""What a message is: four checked fields, there and back."""

from __future__ import annotations

import string

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobs.broker.connection import without_password
from jobs.broker.messages import FEED, FINALIZE, RENDER, WAKE, Message, make, parse, parse_held
from jobs.broker.seals import NO_SEAL, Seal

RUNS = some.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)
NUMBERS = some.integers(0, 2**31 - 1)
EPOCHS = some.integers(0, 2**53 - 1)
QUEUES = some.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=100)
MESSAGES = some.one_of(
    some.builds(Message, some.just(RENDER), some.tuples(RUNS, EPOCHS, NUMBERS, NUMBERS), QUEUES),
    some.builds(
        Message,
        some.just(FEED),
        some.tuples(RUNS, EPOCHS, some.text(min_size=1, max_size=500)),
        QUEUES,
    ),
    some.builds(Message, some.just(FINALIZE), some.tuples(RUNS, EPOCHS), QUEUES),
    some.builds(Message, some.just(WAKE), some.just(()), QUEUES),
)


@given(MESSAGES, some.sampled_from([NO_SEAL, Seal(b"secret")]), some.booleans())
def test_what_is_made_is_read(message: Message, seal: Seal, again: bool) -> None:
    message = Message(
        task=message.task,
        arguments=message.arguments,
        queue=message.queue,
        id=message.id,
        redelivered=again,
    )
    raw = make(message, seal)
    assert parse(raw, seal, message.queue) == message
    assert parse_held(orjson.dumps([orjson.loads(raw), "", message.queue]), seal) == message
    with pytest.raises(ValueError, match="it belongs into"):
        parse(raw, seal, f"{message.queue}x")


@given(some.binary(max_size=200))
def test_anything_else_is_a_value_error(raw: bytes) -> None:
    for read in (parse, parse_held):
        with pytest.raises(ValueError, match=r"."):
            read(raw)


@pytest.mark.parametrize("held", [b"[]", b"5", b"null", b"[1,2,3]", b'["","",""]', b"[[],1,2]"])
def test_what_no_worker_holds(held: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_held(held)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user:secret@h:6379/0", "redis://**@h:6379/0"),
        ("rediss://:secret@h/0?ssl_cert_reqs=none", "rediss://**@h/0?**"),
        ("redis://h/0?password=secret", "redis://h/0?**"),
        ("redis+socket:///run/a.sock", "redis+socket:///run/a.sock"),
        ("sentinel://u:secret@h,i/0?master_name=m", "sentinel://**@h,i/0?**"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
