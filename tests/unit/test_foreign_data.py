"""Data sets that somebody else wrote: no name in them leads out of their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.errors import FatalError, ImagemillError
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import read_summary
from jobs.output.plan import read_plan, read_shard
from jobs.output.records import chunks_done, parts_by_shard, read_part
from jobs.output.storage import Storage, open_storage
from jobs.settings import Settings
from producer.control.progress import display
from producer.planning.reopening import reopen
from producer.upkeep.verification import verify

RUN = "0123456789ab"
JOB = "f" * 32
KEY = ["generate", "null", "", 64, 64, 8]
ROW: dict[str, Any] = {
    "job_id": JOB,
    "status": "done",
    "file_name": f"images/00000/{JOB}.png",
    "custom_id": "a",
    "index": 0,
}
PLAN: dict[str, Any] = {
    "run_id": RUN,
    "manifest": "m",
    "seed": 0,
    "created_at": "",
    "fingerprints": {"null": "f"},
    "shards": [{"requests": 1, "chunks": [{"model": "null", "start": 0, "stop": 1}]}],
}
UP = ("../../evil", "/tmp/evil", "..", "a\0b", "", 5, None, ["x"], {"a": 1})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/passwd", "a\0b", ".."])
@pytest.mark.parametrize(
    "action",
    [
        lambda s, n: s.write(n, b""),
        lambda s, n: s.writer(n).__enter__(),
        lambda s, n: s.read(n),
        lambda s, n: s.reader(n).__enter__(),
        lambda s, n: s.exists(n),
        lambda s, n: s.list(n),
        lambda s, n: s.sizes(n),
        lambda s, n: s.remove(n),
        lambda s, n: s.presigned_url(n, 1),
    ],
    ids=["write", "writer", "read", "reader", "exists", "list", "sizes", "remove", "sign"],
)
@pytest.mark.parametrize("place", ["file", "memory"])
def test_storage_takes_no_name_outside(
    tmp_path: Path, place: str, action: Callable[[Storage, str], object], name: str
) -> None:
    storage = open_storage(str(tmp_path) if place == "file" else f"memory://{tmp_path}")
    with pytest.raises(FatalError, match="names no place below it"):
        action(storage, name)


@pytest.mark.parametrize("field", ["job_id", "file_name", "status"])
@pytest.mark.parametrize("value", UP)
def test_a_record_of_another_form_is_refused(storage: Storage, field: str, value: object) -> None:
    row = ROW | {field: value}
    if field == "file_name":
        row |= {"status": "done"}
    storage.write(layout.METADATA, orjson.dumps(row) + b"\n")
    if field == "status" and value != "done":
        assert list(read_part(storage, layout.METADATA))  # its file is nobody's to open then
        return
    with pytest.raises(FatalError, match="did not write"):
        list(read_part(storage, layout.METADATA))


def test_a_record_that_is_nested_deeply_is_refused(storage: Storage) -> None:
    """It had ended exports and comparisons with a traceback."""
    for depth, prompt in ((15, "[" * 99), (16, "a"), (1000, "a")):
        row = orjson.dumps(ROW | {"prompt": prompt})[:-1]
        storage.write("p", row + b',"x":' + b"[" * depth + b"1" + b"]" * depth + b"}\n")
        if depth < 16:
            assert [one["prompt"] for one in read_part(storage, "p")] == [prompt]
            continue
        with pytest.raises(FatalError, match="what imagemill did not write"):
            list(read_part(storage, "p"))


@pytest.mark.parametrize(
    "line", [b"[]", b"5", b"null", b"{}", b"{", b"\xff", b'{"status": "done"}']
)
def test_what_is_no_record_is_refused(storage: Storage, line: bytes) -> None:
    storage.write(layout.METADATA, line + b"\n")
    with pytest.raises(FatalError, match="did not write"):
        list(read_part(storage, layout.METADATA))


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../../x"},
        {"run_id": "another"},
        {"shards": [{"requests": 1, "chunks": [{"model": "null", "start": 0, "stop": 9}]}]},
        {"shards": [{"requests": 1, "chunks": [{"model": "null", "start": -1, "stop": 1}]}]},
        {"shards": "x"},
        {"fingerprints": 5},
        *({"commits": {"a/b@main": commit}} for commit in (*UP, "main", "F" * 40, "1" * 41)),
    ],
)
def test_a_plan_of_another_form_is_refused(storage: Storage, change: dict[str, Any]) -> None:
    storage.write(layout.plan(RUN), orjson.dumps(PLAN))
    assert read_plan(storage, RUN)
    storage.write(layout.plan(RUN), orjson.dumps(PLAN | change))
    with pytest.raises(FatalError, match="no plan that imagemill wrote"):
        read_plan(storage, RUN)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        *((7, value) for value in UP),
        (6, "gif"),
        (6, "../x"),
        (2, 1),
        (2, -1),
        (2, "a"),
        (5, "x"),
        (8, ["x"]),
    ],
)
def test_a_shard_of_another_form_is_refused(storage: Storage, number: int, value: object) -> None:
    fields = ("task", "model", "adapter", "width", "height", "steps")
    keys = [dict(zip(fields, KEY, strict=True))]
    row: list[Any] = [0, "a", 0, "p", "", 1, "png", JOB, [], []]
    storage.write(layout.shard(RUN, 0), orjson.dumps({"keys": keys, "rows": [row]}))
    (request,) = read_shard(storage, RUN, 0)
    assert (request.job_id, request.key.model) == (JOB, "null")
    row[number] = value
    storage.write(layout.shard(RUN, 0), orjson.dumps({"keys": keys, "rows": [row]}))
    with pytest.raises(FatalError, match="no plan that imagemill wrote"):
        read_shard(storage, RUN, 0)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"run_id": "../x"}'])
def test_a_summary_of_another_form_is_refused(storage: Storage, content: bytes) -> None:
    storage.write(layout.RUN, content)
    with pytest.raises(FatalError, match="not written by imagemill"):
        read_summary(storage)


def test_verify_copies_no_input_from_or_to_anywhere_else(storage: Storage, tmp_path: Path) -> None:
    """It joined the reference's name to two folders, once."""
    (tmp_path / "secret").write_text("x")
    reference = "sha256:../../secret"
    row = ROW | {
        "prompt": "p", "task": "edit", "model": "null", "adapter": "", "seed": "1",
        "input_images": [reference], "sha256": "0", "width": 64, "height": 64,
        "num_inference_steps": 1, "response_format": "png", "batch_width": 1,
    }  # fmt: skip
    storage.write(layout.METADATA, orjson.dumps(row) + b"\n")
    summary = {
        "run_id": RUN, "state": "finished", "manifest": "m", "seed": 0, "created_at": "",
        "requests": 1, "done": 1,
    }  # fmt: skip
    storage.write(layout.RUN, orjson.dumps(summary))
    before = sorted(tmp_path.rglob("*"))
    with display(quiet=True) as shown, pytest.raises(ImagemillError):
        verify(storage.uri, 1, Settings(), load_models(), shown)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    [
        "abc.jsonl",
        "00000.jsonl",
        "00000.0000.jsonl",
        "-0001.0000.done.jsonl",
        "1e3.0000.done.jsonl",
        "00000.000x.done.jsonl",
        "00000.0009.done.jsonl",
        "00009.0000.done.jsonl",
        "00000.0000.done.jsonl.tmp",
        "00000.0000.DONE.jsonl",
        f"{'9' * 40}.0000.done.jsonl",
    ],
)
def test_a_part_of_another_name_is_none_of_the_run_s(storage: Storage, name: str) -> None:
    storage.write(layout.plan(RUN), orjson.dumps(PLAN))
    storage.write(f"{layout.parts(RUN)}/{name}", orjson.dumps(ROW) + b"\n")
    plan = read_plan(storage, RUN)
    assert plan
    assert not chunks_done(storage, plan)
    assert parts_by_shard(storage, RUN).keys() <= {0, 9}
    storage.write(layout.done_part(RUN, 0, 0), b"")
    storage.write(layout.interrupted_part(RUN, 0, 0, "0a1b2c3d"), b"")
    storage.write(layout.reused_part(RUN, 0, 7), b"")
    assert chunks_done(storage, plan) == {(0, 0)}
    assert len([part for part in parts_by_shard(storage, RUN)[0] if name not in part]) == 3


def test_fsck_of_a_stranger_s_parts_mends_what_it_can(storage: Storage) -> None:
    """It ended with a traceback when a part's shard was not the plan's, or its shard was gone."""
    storage.write(layout.plan(RUN), orjson.dumps(PLAN))
    storage.write(layout.done_part(RUN, 9, 0), orjson.dumps(ROW) + b"\n")
    bad = frozenset([ROW["file_name"]])
    assert reopen(storage, RUN, bad) is None
    storage.write(layout.done_part(RUN, 0, 0), orjson.dumps(ROW) + b"\n")
    with pytest.raises(FatalError, match=r"plan/00000\.json is missing"):
        reopen(storage, RUN, bad)
