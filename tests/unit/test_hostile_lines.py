"""Manifest lines of strangers: each has one answer, soon, and none costs another anything."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from jobs.models.table import load_models
from producer.planning.blocks import Planner
from producer.planning.intake import Intake
from producer.planning.manifest import SHOWN_ERRORS, Block
from producer.planning.resolution import PlanOptions

GOOD = b'{"prompt": "good", "model": "null"}'
MIB = 2**20


def hostile(folder: Path) -> Iterator[bytes]:
    """Lines of every kind that once cost a traceback, minutes or gigabytes."""
    for image in (
        "x\0y.png", "file:///a%00b", "file://[", "file://", "file:///dev/zero", "/dev/zero",
        str(folder / "pipe"), f"file://{folder}/pipe", str(folder), "s3://[/x.png", "/" * 5000,
        "a/" * 5000 + ".png", "~", "..", "data:image/png;base64,AAAA", "data:;base64,",
        "%", "\x1b[31m",
    ):  # fmt: skip
        yield orjson.dumps({"prompt": "x", "model": "shapes-edits", "image": image})
    for model in ("m" * 256, "m" * 5000, "\0", "../" * 80, str(folder / "odd"), "", ":", "a:b:c"):
        yield orjson.dumps({"prompt": "x", "model": model})
    yield from (
        b"\xff", b"{", b"[]", b"null", b"5", b'"x"', b"{}", b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}', b'{"prompt": "x", "seed": 1e999}', b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "seed" : 1, "seed" : 2}',
        b'{"prompt":"x","image":{"image":"a","image":"b"}}',
        b'{"custom_id":"a","custom_id":"b","method":"POST","url":"/v1/images/generations",'
        b'"body":{"prompt":"x"}}',
        b'{"custom_id":"a","method":"POST","url":"/v1/images/generations",'
        b'"body":{"prompt":"x","prompt":"y"}}',
        b'{"prompt":' + b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt":' + b"9" * MIB + b"}",
        b'{"prompt":"' + b"\\\\" * 2 * MIB + b'"}', b'{"' + b"k" * MIB + b'":1}',
    )  # fmt: skip
    for some in (
        b",".join(b'"k%d":1' % i for i in range(300_000)),
        b'"prompt":"x",' + b",".join(b'"prompt%d":1' % i for i in range(9_000)),
        b'"prompt":"x","image":[' + b"5," * 99_000 + b"5]",
        b'"prompt":"x","control_images":[' + b'{"image":5},' * 60_000 + b"5]",
        b'"prompt":"x","controlnet_weights":[' + b"5," * 250 + b"5]",
    ):
        yield b"{" + some + b"}"


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    os.mkfifo(tmp_path / "pipe")
    odd = tmp_path / "odd"
    (odd / "unet").mkdir(parents=True)
    (odd / "vae").mkdir()
    (odd / "model_index.json").write_text('{"_class_name": ["x"]}')
    (odd / "unet/config.json").write_text('{"sample_size": 1000000000}')
    (odd / "vae/config.json").write_text('{"block_out_channels": 5}')
    options = PlanOptions(model="null", local_files=True, skip_invalid=True)
    fingerprints = {"null": "f", "shapes-edits": "f", str(odd): "f"}
    return Planner(load_models(), options, fingerprints, Intake(None, tmp_path))


def test_each_hostile_line_is_answered_alone_and_soon(planner: Planner, tmp_path: Path) -> None:
    lines = list(hostile(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for raw in lines:
        started = time.process_time()
        planned = planner.plan(Block(1, [GOOD + b"\n", raw + b"\n", GOOD[:-1] + b', "seed": 1}\n']))
        assert time.process_time() - started < 1, raw[:80]
        numbers = {error.line for error in planned.errors}
        if b'"odd"' not in raw and str(tmp_path / "odd").encode() not in raw:
            assert numbers == {2}, raw[:80]
        assert 1 <= len(planned.errors) <= SHOWN_ERRORS or not planned.errors
        assert all(len(str(error)) < 2000 for error in planned.errors), raw[:80]
        assert planned.requests >= 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # KiB


def test_random_damage_to_good_lines_never_raises(planner: Planner) -> None:
    dice = random.Random(5)
    good = orjson.dumps(
        {"prompt": "a red circle", "custom_id": "a", "seed": 5, "width": 64, "image": "a.png",
         "controlnet_weights": [1.0], "negative_prompt": "b", "strength": 0.5}
    )  # fmt: skip
    for _ in range(470):
        line = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            line[dice.randrange(len(line))] = dice.choice(b'"\\{}[]:,0e-.\0\x1b\xff\n x')
        planned = planner.plan(Block(1, [bytes(line).replace(b"\n", b" ") + b"\n", GOOD + b"\n"]))
        assert planned.requests >= 1


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt": "a: b, c: d", "custom_id": "x:y"}',
        b'{"prompt": "http://a.example:80/", "negative_prompt": "::"}',
        b'{"prompt" : "x" , "seed"\t: 5}',
        b'{"custom_id":"a","method":"POST","url":"/v1/images/generations",'
        b'"body":{"prompt":"a: b"}}',
    ],
)
def test_colons_are_no_repeated_keys(planner: Planner, line: bytes) -> None:
    planned = planner.plan(Block(1, [line + b"\n"]))
    assert (planned.requests, planned.errors) == (1, [])
