"""Plain lines: what is read without pydantic is what pydantic reads."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from io import BytesIO

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.errors import InvalidRequest
from jobs.models.table import load_models
from jobs.requests import MAX_PROMPT, Body, Request
from producer.planning.grouping import Grouper
from producer.planning.manifest import (
    BareLine,
    BatchLine,
    Block,
    parse_checked,
    parse_line,
    parse_lines,
)
from producer.planning.plain import PARAMETERS, PlainBatchLine, PlainBody, PlainLine, parse_plain
from producer.planning.resolution import PlanOptions, Resolver, UnknownFingerprint

TABLE = load_models()
TEXTS = (
    '""', '"a"', '"a: b"', r'"\": \" :"', r'"\u0000"', r'"\ud83d\ude00"', r'"\ud800"', '"\x7f"',
    '"é"', '"a\nb"', r'"a\/b"', '"jpeg"', '"raw"', '"webp"', '"5"',
    json.dumps("ü" * 256), json.dumps("i" * 257), json.dumps("i" * 512), json.dumps("i" * 513),
)  # fmt: skip
NUMBERS = (
    "0", "-0", "1", "01", "-1", "1.0", "-0.0", "1e0", "1E+1", "1e-400", "1e400", "0.1", "50", "51",
    "16", "15", "8192", "8193", "100", "100.0000000000000001", "1.", ".5", "NaN", "Infinity",
    "0.1000000000000000055511151231257827", "18446744073709551615", "18446744073709551616",
    "9" * 30, "9" * 5000, "9223372036854775808",
)  # fmt: skip
REST = ("true", "null", "[]", "{}", '{"a": 1}', '[{"image": "x"}]', "")
OF_TEXT = ("prompt", "model", "response_format", "negative_prompt", "custom_id", "keep", "promt")
LONG = (json.dumps("ü" * MAX_PROMPT), json.dumps("ü" * (MAX_PROMPT + 1)))
BATCH = '{"custom_id": "x", "method": "POST", "url": "/v1/images/%s", "body": %s%s}'
MORE = ("", "", ', "slots": 2', ', "custom_id": "y"', ', "keep": null')

names = st.sampled_from((*PlainLine.__struct_fields__, "n", "image", "url", "body", *OF_TEXT))
gaps = st.sampled_from(("", "", " ", "\t", "\u00a0"))


@st.composite
def pairs(draw: st.DrawFn) -> str:
    """A key and its value, mostly of the right kind."""
    name = draw(names)
    fit = TEXTS if name in OF_TEXT else NUMBERS
    value = draw(st.sampled_from(fit if draw(st.integers(0, 4)) else (*TEXTS, *NUMBERS, *REST)))
    key = json.dumps(name) if draw(st.integers(0, 9)) else json.dumps(name).replace("p", r"\u0070")
    return f"{key}{draw(gaps)}:{draw(gaps)}{value}"


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line, or nearly one."""
    given = draw(st.lists(pairs(), max_size=4))
    if draw(st.integers(0, 4)):
        given.append('"prompt": "a cat"')
    text = "{" + ",".join(given) + "}"
    if not draw(st.integers(0, 3)):
        url = draw(st.sampled_from(("generations", "generations", "edits")))
        text = BATCH % (url, text, draw(st.sampled_from(MORE)))
    raw = draw(st.sampled_from(("", "", "", " ", "\ufeff"))).encode() + text.encode()
    if not draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + 1 :]
    return raw + draw(st.sampled_from((b"\n", b"\n", b"\r\n", b"", b" x\n")))


def said(line: PlainLine | PlainBatchLine | BareLine | BatchLine) -> tuple[object, ...]:
    """Everything that planning asks a line."""
    return (
        line.custom_id, line.task, line.slots, repr(line.keep), line.has_recipe,
        *(repr(getattr(line.body, name)) for name in Body.model_fields),
    )  # fmt: skip


def check(raw: bytes) -> bool:
    """Whether a line is plain; then both ways must read it alike."""
    plain = parse_plain((raw,))
    if plain is not None:
        checked = parse_checked(1, raw)
        assert isinstance(checked, BareLine | BatchLine), checked
        assert [said(line) for line in plain.lines] == [said(checked)]
    return plain is not None


@settings(max_examples=500)
@given(lines())
def test_what_is_plain_reads_alike(raw: bytes) -> None:
    check(raw)


@pytest.mark.parametrize("name", [*PlainLine.__struct_fields__, *OF_TEXT])
def test_each_field_reads_alike_whatever_its_value(name: str) -> None:
    plain = 0
    for value in (*TEXTS, *NUMBERS, *REST, *LONG):
        prompt = "" if name == "prompt" else '"prompt": "a",'
        plain += check(f'{{{prompt} "{name}": {value}}}'.encode())
    assert bool(plain) is (name in PlainLine.__struct_fields__)


def test_each_column_that_is_kept_reads_alike_whatever_its_value() -> None:
    values = (*TEXTS, *NUMBERS, *REST, json.dumps("ü" * 32_768), json.dumps("ü" * 32_769))
    plain = [check(b'{"prompt": "a", "keep": {"a": %s}}' % one.encode()) for one in values]
    assert sum(plain) > len(TEXTS)


@pytest.mark.parametrize("name", ["a: b", "seed", "a\x00b", "", "ü" * 64, "ü" * 65])
def test_each_column_that_is_kept_reads_alike_whatever_its_name(name: str) -> None:
    raw = json.dumps({"prompt": "a", "keep": {"b": 1, name: 2}}, ensure_ascii=False).encode()
    assert check(raw) is (name in ("a: b", "ü" * 64))


@pytest.mark.parametrize("count", [0, 1, 100, 101])
def test_so_many_kept_columns_read_alike(count: int) -> None:
    raw = json.dumps({"prompt": "a", "keep": {str(i): i for i in range(count)}}).encode()
    assert check(raw) is (count <= 100)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a", "keep": {"a": 1, "a": 2}}',
        b'{"prompt": "a", "prompt": "b:c"}',
        b'{"prompt": "a: b", "seed": 1, "seed": 2}',
        b'{"prompt": "\\": \\":", "seed": 1, "seed": 1}',
        b'{"prompt": "a", "seed": null}',
    ],
)
def test_what_pydantic_is_to_look_at_is_not_plain(raw: bytes) -> None:
    assert not check(raw)


GIVEN: dict[str, object] = {
    "prompt": "a cat: asleep", "model": "null", "num_inference_steps": 3, "guidance_scale": 2,
    "seed": 2**64 - 1, "response_format": "png", "width": 64, "height": 72,
    "negative_prompt": "", "strength": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a cat"},
        GIVEN,
        GIVEN | {"custom_id": "x", "slots": 2, "keep": {"a": "b: c", "d": 2**63 - 1, "e": True}},
        {"custom_id": "x", "method": "POST", "url": "/v1/images/generations", "body": GIVEN},
    ],
)
def test_what_most_manifests_hold_is_plain(line: dict[str, object]) -> None:
    raw = json.dumps(line).encode()
    plain, checked = parse_line(1, raw), parse_checked(1, raw)
    assert isinstance(plain, PlainLine | PlainBatchLine)
    assert isinstance(checked, BareLine | BatchLine)
    assert said(plain) == said(checked)


WHOLE = (
    b'{"prompt": "a", "keep": {"b": 1}}\n', b'{"prompt": "a: b", "seed": 1}\n',
    b'{"prompt": "c", "width": 64}\n',
    b'{"custom_id": "x", "method": "POST", "url": "/v1/images/generations", '
    b'"body": {"prompt": "a"}}\n',
)  # fmt: skip
BROKEN = (
    b"\n", b'{"prompt": "a"} {"prompt": "b"}\n', b'{"prompt": "a"}{"prompt": "b"}\n', b"{\n",
    b'"prompt": "b"}\n', b'{"prompt": "a", "prompt": "b"}\n', b'{"prompt": "a}\n', b'{b"}\n',
    b'{"prompt": "a", "seed": null}\n', b'{"prompt": "a", "seed": 18446744073709551616}\n',
    b'{"prompt": "a"}\r\n', b'{"prompt": "a", "image": "x"}\n', b'{"prompt": "a", "n": 2}\n',
    b'{"method": "POST", "body": {"prompt": "a"}\n', b'{"prompt": "a"},\n', b'[{"prompt": "a"}]\n',
)  # fmt: skip
whole = st.lists(st.sampled_from(WHOLE[:-1])) | st.lists(st.sampled_from(WHOLE))


@settings(max_examples=500)
@given(whole, st.lists(st.sampled_from(BROKEN) | lines(), max_size=2), st.randoms())
def test_lines_of_a_block_read_as_each_alone(
    plain: list[bytes], others: list[bytes], rng: random.Random
) -> None:
    raw = rng.sample([*plain, *others], len(plain) + len(others))
    text = b"".join(line if line.endswith(b"\n") else line + b"\n" for line in raw)
    block = Block(3, BytesIO(text).readlines())
    if found := parse_plain(block.lines):
        assert list(enumerate(found.lines, block.first)) == list(parse_lines(block))


texts = st.sampled_from(("", "a", 'ü"\\\n\u2028', "a: {{ b }}"))
bodies = st.fixed_dictionaries(
    {"prompt": texts},
    optional={
        "negative_prompt": texts, "seed": st.sampled_from((0, 2**64 - 1)),
        "model": st.sampled_from(("null", "null", "null", "null", "shapes")),
        "guidance_scale": st.sampled_from((0, 2, 2.0)), "width": st.sampled_from((64, 72, 72, 17)),
        "response_format": st.sampled_from(("png", "url")),
    },
)  # fmt: skip
bare = st.builds(
    lambda body, more: body | more,
    bodies,
    st.fixed_dictionaries(
        {},
        optional={"custom_id": st.text(min_size=1, max_size=9), "slots": st.sampled_from((1, 2))},
    ),
)
batch = bodies.map(
    lambda body: {
        "custom_id": "x", "method": "POST", "url": "/v1/images/generations", "body": body
    }
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(bare, min_size=1, max_size=5) | st.lists(batch, min_size=1, max_size=5))
def test_requests_of_a_plain_block_are_those_of_each_line(some: list[dict[str, object]]) -> None:
    plain = parse_plain([json.dumps(one).encode() + b"\n" for one in some])
    assume(plain)  # a custom_id with a quotation mark before a colon is not
    assert plain
    together, alone = (
        Resolver(TABLE, PlanOptions(seed=7, model="null"), {"null": "f"}) for _ in range(2)
    )
    try:
        each = [
            alone.resolve(5 + n, "generate", line.body, line.custom_id or "", 0, line.slots or 0)
            for n, line in enumerate(plain.lines)
        ]
    except (InvalidRequest, UnknownFingerprint) as refused:
        with pytest.raises(type(refused)):
            together.resolve_all(5, plain)
        return
    requests, calls, identities = together.resolve_all(5, plain)
    assert requests == each
    assert list(calls) == [Grouper(TABLE, {}).call_key(one.key) for one in each]
    assert all(type(one) is Request for one in requests)
    assert identities == [alone.identity(one) for one in each]


def test_a_plain_block_is_read_at_once() -> None:
    for one in WHOLE:
        plain = parse_plain((one,) * 3)
        assert plain
        assert len(plain.lines) == 3


def test_a_plain_body_has_the_fields_that_a_body_has() -> None:
    names: Sequence[str] = PlainBody.__struct_fields__
    lacks = set(Body.model_fields) - set(names)
    assert set(names[PARAMETERS]) == set(names[4:])
    assert names[:4] == ("prompt", "negative_prompt", "seed", "guidance_scale")
    assert lacks == {"image", "control_images", "controlnet_weights", "mask_image"}
    assert all(getattr(PlainBody, name) is None for name in lacks)
