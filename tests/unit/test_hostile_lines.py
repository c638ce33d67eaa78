"""Manifest lines of strangers: each has one answer, soon, and none costs another anything."""

from __future__ import annotations

import os
import random
import resource
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import orjson
import pytest

from jobs.errors import FatalError, ManifestRefused
from jobs.inputs.fetching import MAX_URL
from jobs.models import fingerprints
from jobs.models.hub import NoSuchWeights
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.records import read_part
from producer.planning.blocks import plan_blocks
from producer.planning.intake import Intake
from producer.planning.manifest import SHOWN_ERRORS, Block
from producer.planning.planner import MAX_UNLISTED, Planner
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from producer.planning.survey import survey

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
        b'"prompt":"x","model":"shapes-edits","image":"' + b64encode(os.urandom(24 * MIB)) + b'"',
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
        # An image of 24 MB is hashed and its line compressed, which takes 0.5 to 1.2 s.
        assert time.process_time() - started < 1 + len(raw) / (16 << 20), raw[:80]
        numbers = {error.line for error in planned.errors}
        if b'"odd"' not in raw and str(tmp_path / "odd").encode() not in raw:
            assert numbers == {2}, raw[:80]
        assert 1 <= len(planned.errors) <= SHOWN_ERRORS or not planned.errors
        assert all(len(str(error)) < 2000 for error in planned.errors), raw[:80]
        assert planned.requests >= 2
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # KiB


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (rb'{"custom_id": "s\ud800", "prompt": "x"}', r"s\ud800"),
        (rb'{"custom_id": "s\udfff", "prompt": 5, "model": "\udc00"}', r"s\udfff"),
        (
            rb'{"custom_id":"s\ud800","method":"POST","url":"/v1/images/generations",'
            rb'"body":{"prompt":"x"}}',
            r"s\ud800",
        ),
        (rb'{"custom_id": "a", "prompt": "x\ud800"}', "a"),
        (rb'{"custom_id": "a", "prompt": "x", "keep": {"\udc00": "\ud800"}}', "a"),
        (rb'{"custom_id": "a", "prompt": "x", "\ud800": 1}', "a"),
    ],
)
def test_half_of_a_surrogate_pair_costs_its_line_alone(
    tmp_path: Path, line: bytes, name: str
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(GOOD + b"\n" + line + b"\n")
    job = Job(str(manifest), str(tmp_path / "out"), load_models(), PlanOptions(skip_invalid=True))
    submission = identify(job)
    plan = prepare(submission)
    assert (plan.left, plan.invalid) == (1, 1)
    (row,) = read_part(submission.storage, layout.invalid(plan.run_id))
    assert (row["custom_id"], row["index"]) == (name, 1)
    assert "half of a surrogate pair at column" in row["message"]


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


def test_other_places_have_short_names(planner: Planner) -> None:
    for image in ("https://a/" + "a" * MAX_URL, "sha256:" + "0" * 63, "SHA256:" + "0" * 64):
        line = orjson.dumps({"prompt": "x", "model": "shapes-edits", "image": image})
        planned = planner.plan(Block(1, [line]))
        assert [error.field for error in planned.errors] == ["image"], image[:20]


def test_names_of_fields_are_shown_without_control_characters(planner: Planner) -> None:
    (error, *_) = planner.plan(Block(1, [b'{"a\\u001b[2J\\nb": 1}'])).errors[1:]
    assert error.field == r"a\x1b[2J\nb"


def test_a_data_uri_has_a_short_header(planner: Planner) -> None:
    image = b"data:" + b";a" * 2 * MIB + b";base64,AAAA"
    line = b'{"prompt": "x", "model": "shapes-edits", "image": "' + image + b'"}'
    tracemalloc.start()
    try:
        assert len(planner.plan(Block(1, [line])).errors) == 1
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


def test_models_that_do_not_exist_are_their_lines_own_fault(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def commit(repo: str, _: str | None) -> str:
        asked.append(repo)
        raise NoSuchWeights(f"no {repo}")

    monkeypatch.setattr(fingerprints, "commit_of", commit)
    monkeypatch.setattr("jobs.models.table.commit_of", commit)
    manifest = tmp_path / "m.jsonl"
    lines = [orjson.dumps({"prompt": "x", "model": f"a/{n}"}) for n in range(99)]
    manifest.write_bytes(b"\n".join([GOOD, *lines]))
    (block,) = plan_blocks(str(manifest), planner.table, planner.options, {"null": "f"})
    assert (block.requests, {error.line for error in block.errors}) == (1, set(range(2, 101)))
    assert len(asked) <= 2 * MAX_UNLISTED  # what each is, and at which commit


def test_a_model_that_the_hub_does_not_tell_about_now_is_no_line_s_fault(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(repo: str, _: str | None) -> str:
        raise FatalError(f"{repo}: no answer")

    monkeypatch.setattr(fingerprints, "commit_of", commit)
    monkeypatch.setattr("jobs.models.table.commit_of", commit)
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b'{"prompt": "x", "model": "a/b"}\n')
    (_, last) = plan_blocks(str(manifest), planner.table, planner.options, {})
    assert str(last.unidentified) == "a/b: no answer"


@pytest.mark.parametrize("skip", [False, True])
def test_a_model_that_the_hub_does_not_tell_about_now_hides_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    def commit(repo: str, _: str | None) -> str:
        raise FatalError(f"{repo}: no answer", "Look at the network.")

    monkeypatch.setattr(fingerprints, "commit_of", commit)
    monkeypatch.setattr("jobs.models.table.commit_of", commit)
    manifest, out = tmp_path / "m.jsonl", tmp_path / "out"
    lines = [
        {"prompt": 5}, {"prompt": "x", "model": "a/b"}, {"prompt": "y", "model": "null"},
        {"prompt": "z", "model": "a/b", "seed": "many"}, {"prompt": "x", "model": "c/d"},
    ]  # fmt: skip
    manifest.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    options = PlanOptions(skip_invalid=skip)
    found = survey(str(manifest), load_models(), options)
    assert [error.line for error in found.faults.first] == [1, 4]
    assert (found.lines, found.is_refused) == (1, not skip)
    assert str(found.unidentified) == "a/b: no answer\nc/d: no answer\nLook at the network."
    job = Job(str(manifest), str(out), load_models(), options)
    with pytest.raises(FatalError if skip else ManifestRefused) as refused:
        prepare(identify(job))
    assert "a/b: no answer\nc/d: no answer\nLook at the network." in str(refused.value)
    assert ("2 invalid lines" in str(refused.value)) is not skip
    assert not out.exists()


def test_weights_of_several_models_are_asked_for_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2, timeout=30)

    def commit(repo: str, _: str | None) -> str:
        both.wait()  # one after the other breaks it
        raise FatalError(f"{repo}: no answer")

    monkeypatch.setattr(fingerprints, "commit_of", commit)
    models, manifest = tmp_path / "models.toml", tmp_path / "m.jsonl"
    models.write_text('default = "a"\n[models.a]\nrepo = "org/a"\n[models.b]\nrepo = "org/b"\n')
    manifest.write_bytes(b'{"prompt": "x"}\n{"prompt": "x", "model": "b"}\n')
    found = survey(str(manifest), load_models(models), PlanOptions())
    assert found.unidentified
    assert found.unidentified.message == "org/a: no answer\norg/b: no answer"
