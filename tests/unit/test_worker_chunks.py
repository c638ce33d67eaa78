"""A chunk as storage has it: what is settled is not rendered again."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.broker.attempts import Attempt
from jobs.output import layout
from jobs.output.plan import Chunk, Shard, encode_shard, write_plan
from jobs.output.records import encode_part
from jobs.output.storage import Storage, open_storage
from tests.samples import make_key, make_plan, make_request
from worker.chunks import Shards, Work, open_run

KEY = make_key(model="m")
INK = make_key(model="m", adapter="ink")


def name(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run of six requests in two chunks, one shard."""
    storage = open_storage(str(tmp_path))
    requests = [make_request(i, INK if i == 5 else KEY) for i in range(6)]
    storage.write(layout.shard("run", 0), encode_shard(requests))
    chunks = (Chunk("m", 0, 3), Chunk("m", 3, 6))
    weights = {"m": "base", "m:ink": "base+ink"}
    write_plan(storage, make_plan("run", weights, (Shard(6, chunks),)))
    return storage


def write(storage: Storage, path: str, numbers: list[int]) -> None:
    rows = (
        {"job_id": name(i), "status": "done", "file_name": f"images/00000/{name(i)}.png"}
        for i in numbers
    )
    storage.write(path, encode_part(rows))  # type: ignore[arg-type]


def work(storage: Storage, chunk: int, attempt: int = 1) -> Work:
    return Work(
        run=open_run("run", 1, storage.uri),
        shards=Shards(),
        shard=0,
        chunk=chunk,
        attempt=Attempt(attempt, 0),
    )


def test_what_an_earlier_run_rendered_is_settled_in_its_chunk_alone(storage: Storage) -> None:
    write(storage, layout.reused_part("run", 0, 0), [1, 4])
    write(storage, layout.reused_part("run", 0, 1), [5])
    assert work(storage, 0).settled() == {name(1): "done"}
    assert work(storage, 1).settled() == {name(4): "done", name(5): "done"}


def test_what_an_interrupted_attempt_had_finished_is_settled(storage: Storage) -> None:
    write(storage, layout.interrupted_part("run", 0, 0, "abc"), [0, 2])
    assert work(storage, 0).settled() == {name(0): "done", name(2): "done"}
    assert work(storage, 1).settled() == {}


def test_a_later_attempt_looks_again(storage: Storage) -> None:
    first, second = work(storage, 0), work(storage, 0, attempt=2)
    write(storage, layout.interrupted_part("run", 0, 0, "abc"), [0])
    assert first.settled() == {}
    assert second.settled() == {name(0): "done"}


def test_an_adapter_was_planned_with_its_own_weights(storage: Storage) -> None:
    requests = work(storage, 1).requests()
    planned = [work(storage, 1).planned_weights(request.key) for request in requests]
    assert planned == ["base", "base", "base+ink"]
