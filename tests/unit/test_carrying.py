"""What fills no pipeline call in its block of lines is rendered with that of the next blocks."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import rows_of_shard, write_dataset
from jobs.output.plan import Plan, read_shard
from jobs.output.records import Timings, parts_by_lines, parts_by_shard, write_part
from jobs.output.storage import Storage
from jobs.requests import Request
from producer.planning import carrying, manifest, processes
from producer.planning.carrying import BLOCKS, Carrier
from producer.planning.generations import plan_next
from producer.planning.grouping import Grouper
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from tests.samples import STACK, make_key, make_record, make_request

TABLE = load_models()  # whose null model takes up to 16
WIDTH = 16
LINES = 64  # of a block
COUNT = 20 * LINES + 9
Call = list[Request]


def mixed(count: int, keys: int) -> list[dict[str, Any]]:
    """Lines, whose batch keys follow each other as they come."""
    rng = random.Random(5)
    guidance = [rng.randrange(keys) / 10 for _ in range(count)]
    return [
        {"custom_id": f"{i}", "prompt": f"p{i}", "guidance_scale": one}
        for i, one in enumerate(guidance)
    ]


def planned(folder: Path, name: str, lines: list[dict[str, Any]]) -> tuple[Storage, Plan]:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = Job(str(file), str(folder / "out"), TABLE, PlanOptions(model="null"))
    submission = identify(job)
    return submission.storage, prepare(submission)


def chunks(storage: Storage, plan: Plan) -> dict[tuple[int, int], list[Call]]:
    """The pipeline calls of each chunk."""
    found: dict[tuple[int, int], list[Call]] = {}
    for number, shard in enumerate(plan.shards):
        rows = read_shard(storage, plan.run_id, number)
        assert len(rows) == shard.rows
        for at, chunk in enumerate(shard.chunks):
            calls = found[number, at] = []
            for row in rows[chunk.start : chunk.stop]:
                most = row.key.slots or WIDTH
                if not calls or calls[-1][0].key != row.key or len(calls[-1]) == most:
                    calls.append([])
                calls[-1].append(row)
    return found


def render(storage: Storage, plan: Plan) -> int:
    """Store the parts that workers would; returns the slots of all calls."""
    slots = started = 0
    for (shard, chunk), calls in chunks(storage, plan).items():
        records = []
        for call in calls:
            started += 1
            stack = replace(STACK, batch_width=call[0].key.slots or WIDTH)
            slots += stack.batch_width
            for one in call:
                name = layout.image(shard, one.job_id, one.format)
                storage.write(name, b"")
                timings = Timings(started=started, images=len(call))
                records.append(
                    make_record(one, file_name=name, sha256="0", stack=stack, timings=timings)
                )
        write_part(storage, layout.done_part(plan.run_id, shard, chunk), records)
    return slots


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifest, carrying):
        monkeypatch.setattr(module, "SHARD_LINES", LINES)
    monkeypatch.setattr(processes, "ALONE_SECONDS", 1000)  # other processes would have large ones


def test_each_request_is_in_one_call_and_calls_are_full(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path, "m", mixed(COUNT, 25))  # two or three of each in a block
    calls = list(chain.from_iterable(chunks(storage, plan).values()))
    assert len({one.job_id for call in calls for one in call}) == COUNT == plan.requests
    assert sum(map(len, calls)) == COUNT == plan.left
    of_key = Counter(call[0].key._replace(slots=0) for call in calls for _ in call)
    # What fills no call is what is left over of all the lines of a key, not of a block's.
    left = sum(len(call) for call in calls if call[0].key.slots)
    assert left <= sum(count % WIDTH for count in of_key.values()) < COUNT / 3


def test_the_dataset_is_in_manifest_order(tmp_path: Path) -> None:
    storage, plan = planned(tmp_path, "m", mixed(COUNT, 40))
    assert any(shard.carried for shard in plan.shards)
    slots = render(storage, plan)
    summary = write_dataset(storage, plan)
    rows = [json.loads(line) for line in storage.read(layout.METADATA).splitlines()]
    assert [row["custom_id"] for row in rows] == [str(i) for i in range(COUNT)]
    assert (summary.done, summary.device_slots) == (COUNT, slots)
    parts = parts_by_lines(plan, parts_by_shard(storage, plan.run_id))
    third = rows_of_shard(storage, plan, 2, parts[2])
    assert [row["index"] for _, row in third if row] == list(range(2 * LINES, 3 * LINES))


def test_another_run_renders_only_what_is_new(tmp_path: Path) -> None:
    lines = mixed(COUNT, 40)
    storage, plan = planned(tmp_path, "m", lines)
    render(storage, plan)
    write_dataset(storage, plan)
    again = plan_next(storage, plan)
    assert (again.left, again.reused) == (0, COUNT)
    other = random.Random(1).sample(lines, len(lines))
    new = [{"custom_id": f"new {i}", "prompt": "p", "guidance_scale": 1.5} for i in range(50)]
    storage, plan = planned(tmp_path, "other", [*new, *other])
    assert plan.reused == COUNT
    left = [call for some in chunks(storage, plan).values() for call in some]
    assert {one.custom_id for call in left for one in call} >= {line["custom_id"] for line in new}
    render(storage, plan)
    assert write_dataset(storage, plan).done == COUNT + 50


def test_lines_within_a_block_may_stand_in_any_order(tmp_path: Path) -> None:
    lines = mixed(2 * LINES, 10)
    halves = lines[:LINES], lines[LINES:]
    shuffled = [one for some in halves for one in random.Random(1).sample(some, len(some))]
    slots = [
        {
            one.job_id: call[0].key.slots
            for calls in chunks(*planned(tmp_path, name, some)).values()
            for call in calls
            for one in call
        }
        for name, some in (("a", lines), ("b", shuffled))
    ]
    assert slots[0] == slots[1]


def test_nothing_waits_for_long() -> None:
    carrier = Carrier(Grouper(TABLE, {}))
    since: dict[str, int] = {}
    for block in range(100):
        key = make_key(model="null", guidance_scale=float(block % 40))
        some = [make_request(block * 8 + i, key) for i in range(3)]
        since |= {one.job_id: block for one in some}
        for groups in carrier.add([(key, some)]):
            for one in chain.from_iterable(requests for _, requests in groups):
                assert block - since.pop(one.job_id) <= 2 * BLOCKS
        assert len(since) <= 3 * 2 * BLOCKS
    for groups in carrier.end():
        for one in chain.from_iterable(requests for _, requests in groups):
            del since[one.job_id]
    assert since == {}
