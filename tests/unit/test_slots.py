"""Slots: no padding where a group of requests is small, and the same ones in any order."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs.models.table import load_models
from jobs.output.plan import read_shard
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.planning.resolution import PlanOptions
from producer.planning.slots import cost, fit
from producer.planning.submission import Job, identify, prepare

TABLE = load_models()  # whose null model takes up to 16


def planned(folder: Path, lines: list[dict[str, Any]]) -> list[Request]:
    """The rows of the one shard that a manifest of the null model becomes."""
    folder.mkdir()
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps({"model": "null"} | line) + "\n" for line in lines))
    storage = open_storage(str(folder / "out"))
    job = Job(str(manifest), storage.uri, TABLE, PlanOptions())
    plan = prepare(identify(job))
    rows = read_shard(storage, plan.run_id, 0)
    ends = [(chunk.start, chunk.stop) for chunk in plan.shards[0].chunks]
    assert sum(stop - start for start, stop in ends) == len(rows) == len(lines)
    for chunk in plan.shards[0].chunks:  # no batch is cut in two by a chunk's end
        keys = Counter(row.key for row in rows[chunk.start : chunk.stop])
        for key, count in keys.items():
            at_end = sum(row.key == key for row in rows[chunk.stop :])
            assert not (count % (key.slots or 16) and at_end)
    return rows


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_no_other_slots_cost_less(width: int) -> None:
    best = [0.0]  # by number of requests, whatever the calls
    for count in range(1, width):
        calls = [1 << n for n in range(width.bit_length())]
        best.append(min(cost(n, width) + best[max(0, count - n)] for n in calls))
        found = fit(count, width)
        assert sum(cost(n, width) for n in found) == best[count]
        assert sum(found) >= count > sum(found[:-1])
        assert all(not n & (n - 1) for n in found)


def test_what_shares_no_call_is_not_padded(tmp_path: Path) -> None:
    rows = planned(tmp_path / "a", [{"prompt": "p", "guidance_scale": i / 9} for i in range(40)])
    assert Counter(row.key.slots for row in rows) == {1: 40}


def test_requests_with_a_guidance_each_fill_calls(tmp_path: Path) -> None:
    """Of a model whose family mixes them: those above 1, and those that guide nothing."""
    lines = [{"model": "shapes", "prompt": f"p{i}", "guidance_scale": i / 8} for i in range(49)]
    rows = planned(tmp_path / "a", lines)
    assert Counter(row.key.slots for row in rows if row.key.guidance_scale > 1) == {0: 32, 8: 8}
    assert Counter(row.key.slots for row in rows if row.key.guidance_scale <= 1) == {8: 8, 1: 1}
    shuffled = planned(tmp_path / "b", random.Random(0).sample(lines, len(lines)))
    assert {row.job_id: row.key for row in rows} == {row.job_id: row.key for row in shuffled}


def test_what_fills_calls_stays_together(tmp_path: Path) -> None:
    rows = planned(tmp_path / "a", [{"prompt": f"p{i}"} for i in range(37)])
    # 32 fill two calls of the model's 16 slots, which need not be said; five take one of 8.
    assert Counter(row.key.slots for row in rows) == {0: 32, 8: 5}


def test_the_order_of_lines_changes_no_slots(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{i}", "num_inference_steps": 4 + i % 3} for i in range(100)]
    shuffled = random.Random(0).sample(lines, len(lines))
    one, other = planned(tmp_path / "a", lines), planned(tmp_path / "b", shuffled)
    assert {row.job_id: row.key for row in one} == {row.job_id: row.key for row in other}
    assert len({row.key.slots for row in one}) > 1


def test_a_line_may_say_its_slots_and_is_the_same_job(tmp_path: Path) -> None:
    rows = planned(tmp_path / "a", [{"prompt": f"p{i}", "slots": 2} for i in range(5)])
    assert {row.key.slots for row in rows} == {2}
    free = planned(tmp_path / "b", [{"prompt": f"p{i}"} for i in range(5)])
    assert {row.job_id for row in rows} == {row.job_id for row in free}


def test_lines_that_say_slots_join_those_that_got_them(tmp_path: Path) -> None:
    """One group's count took the other's place, once, and its rows were in no chunk."""
    said = [{"prompt": f"said {i}", "slots": 8} for i in range(3)]
    rows = planned(tmp_path / "a", [{"prompt": f"p{i}"} for i in range(5)] + said)
    assert Counter(row.key.slots for row in rows) == {8: 8}


def test_chunks_of_large_images_are_small(tmp_path: Path) -> None:
    """A chunk is some seconds of device time, whatever the size of its images."""
    manifest = tmp_path / "m.jsonl"
    for pixels, least in ((64, 8), (256, 50)):
        size = {"width": pixels, "height": pixels}
        lines = [{"model": "null", "prompt": f"p{i}"} | size for i in range(1024)]
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        job = Job(str(manifest), str(tmp_path / f"out-{pixels}"), TABLE, PlanOptions())
        chunks = prepare(identify(job)).shards[0].chunks
        assert len(chunks) >= least
        assert {(chunk.stop - chunk.start) % 16 for chunk in chunks} == {0}
