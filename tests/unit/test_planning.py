"""Lines become requests with nothing left open, grouped into chunks, the same in any order."""

import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from jobs.errors import FatalError, InvalidRequest
from jobs.models.table import ModelTable, load_models
from jobs.output import layout
from jobs.output.plan import read_shard
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.helpers import Helpers
from producer.planning import processes
from producer.planning.blocks import plan_blocks
from producer.planning.intake import Intake
from producer.planning.manifest import Block, parse_line
from producer.planning.planner import PlannedBlock, Planner
from producer.planning.processes import plan_each
from producer.planning.resolution import PlanOptions, Resolver
from tests.support import eventually

TABLE = load_models()
FINGERPRINTS = {"shapes": "s", "null": "n"}


def resolve(
    options: PlanOptions = PlanOptions(), table: ModelTable = TABLE, **body: Any
) -> Request:
    line = parse_line(1, json.dumps({"prompt": "a red circle"} | body).encode())
    assert not isinstance(line, list), line
    return Resolver(table, options, FINGERPRINTS).resolve(
        0, line.task, line.body, line.custom_id or "", slots=line.slots or 0
    )


def plan(path: Path, lines: list[dict[str, Any]], **options: Any) -> list[PlannedBlock]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fingerprints = dict(FINGERPRINTS)
    return list(plan_blocks(str(path), TABLE, PlanOptions(**options), fingerprints))


def test_defaults_come_from_the_model() -> None:
    key = resolve().key
    assert (key.model, key.width, key.height, key.steps) == ("shapes", 64, 64, 8)
    assert key.guidance_scale == 3.0
    assert not key.negative


def test_a_missing_seed_depends_on_the_run_seed_and_the_custom_id_alone() -> None:
    assert resolve(custom_id="a").seed == resolve(custom_id="a", prompt="else").seed
    assert resolve(custom_id="a").seed != resolve(custom_id="b").seed
    assert resolve(custom_id="a").seed != resolve(PlanOptions(seed=1), custom_id="a").seed


def test_without_a_custom_id_a_missing_seed_depends_on_the_content() -> None:
    assert resolve().seed == resolve().seed
    assert resolve().seed != resolve(prompt="a blue circle").seed


def test_a_given_seed_stands() -> None:
    assert resolve(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "b"}, {"seed": 2}, {"width": 72}, {"height": 72}, {"num_inference_steps": 9},
        {"guidance_scale": 2}, {"negative_prompt": ""}, {"negative_prompt": "x"},
        {"response_format": "png"}, {"custom_id": "other"}, {"model": "null"},
    ],
)  # fmt: skip
def test_every_field_is_part_of_the_job_id(changed: dict[str, Any]) -> None:
    base = {"custom_id": "x", "seed": 1}
    assert resolve(**base).job_id == resolve(**base).job_id
    assert resolve(**(base | changed)).job_id != resolve(**base).job_id


def test_spelling_a_default_out_changes_nothing() -> None:
    assert resolve(width=64, num_inference_steps=8, guidance_scale=3).job_id == resolve().job_id


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "nope"}, "model"),
        ({"model": "shapes:nope"}, "model"),
        ({"width": 65}, "width"),
        ({"height": 1024}, "height"),
        ({"model": "null", "image": "aGk="}, "image"),
        ({"model": "null", "control_images": ["aGk="]}, "control_images"),
        ({"controlnet_weights": [1.0]}, "controlnet_weights"),
        ({"strength": 0.5}, "strength"),
        ({"response_format": "raw"}, "response_format"),
        ({"slots": 3}, "slots"),
        ({"slots": 32}, "slots"),
    ],
)
def test_what_the_model_does_not_take_is_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(**body)
    assert caught.value.field == field


def test_calls_cover_all_rows_and_hold_one_model(tmp_path: Path) -> None:
    models = ["shapes", "null"]
    lines = [{"prompt": f"p{i}", "model": models[i % 2]} for i in range(3000)]
    (block,) = plan(tmp_path / "m", lines)
    found = {model: calls for model, _, calls in block.calls.by_model()}
    stops = [stop for calls in found.values() for stop, _ in calls]
    assert set(found) == set(models)
    assert stops == sorted(set(stops))
    assert stops[-1] == sum(one.images for one in block.tallies.values()) == 3000


def test_parallel_planning_gives_what_planning_in_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]]
    lines = [{"custom_id": f"row {i}", "prompt": f"p{i}"} for i in range(20_000)]
    lines[9_000]["n"] = 9_000  # which cuts its block in three
    monkeypatch.setattr(processes, "ALONE_SECONDS", 1000)
    alone = plan(tmp_path / "m", lines)
    asked: list[Future[Any]] = []

    class Asked(Helpers):
        @property
        def is_ready(self) -> bool:
            eventually(lambda: super(Asked, self).is_ready)
            return True

        def submit(self, *args: Any, **named: Any) -> Future[Any]:
            asked.append(super().submit(*args, **named))
            return asked[-1]

    monkeypatch.setattr(processes, "ALONE_SECONDS", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 3)  # so this process, and two others
    monkeypatch.setattr(processes, "Helpers", Asked)
    together = list(plan_blocks(str(tmp_path / "m"), TABLE, PlanOptions(), dict(FINGERPRINTS)))
    assert [block.shard for block in together] == [block.shard for block in alone]
    assert sum(isinstance(future.result(), PlannedBlock) for future in asked) >= 4


def test_that_a_planning_process_was_killed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly(Helpers):
        def submit(self, act: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
            return super().submit(os._exit, 1) if args else super().submit(act, **named)

    monkeypatch.setattr(processes, "ALONE_SECONDS", -1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(processes, "Helpers", Deadly)
    planner = Planner(TABLE, PlanOptions(), dict(FINGERPRINTS), Intake(None, None, frozenset()))
    blocks = (Block(number, [b'{"prompt": "a"}']) for number in count(1))
    with pytest.raises(FatalError, match="a process that helped ended: exit code 1"):
        for _ in plan_each(planner, blocks):
            pass


def test_few_blocks_wait_for_one_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly the others are read: each of them is planned before the next is there."""
    asked, given, waiting = list[int](), list[int](), list[int]()

    class Late(Future[PlannedBlock]):
        """Planned when nothing is left but to wait for it."""

        def result(self, timeout: float | None = None) -> PlannedBlock:
            self.set_result(PlannedBlock())
            return super().result(timeout)

    class Pool:
        is_ready = True

        def __init__(self, *_: object) -> None:
            pass

        def submit(self, _: Callable[..., Any], __: bytes, block: Block) -> Future[PlannedBlock]:
            asked.append(block.first)
            if len(asked) == 1:
                return Late()
            done = Future[PlannedBlock]()
            done.set_result(PlannedBlock())
            return done

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def read() -> Iterator[Block]:
        for number in range(1, 101):
            waiting.append(number - len(given))
            yield Block(number, [b'{"prompt": "a"}'])

    monkeypatch.setattr(processes, "ALONE_SECONDS", -1)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(processes, "Helpers", Pool)
    planner = Planner(TABLE, PlanOptions(), dict(FINGERPRINTS), Intake(None, None, frozenset()))
    for block, _ in plan_each(planner, read()):
        given.append(block.first)
    assert given == list(range(1, 101))
    assert len(asked) > 50
    assert 10 < max(waiting) < 25


def test_equal_numbers_are_one_job_whichever_way_they_are_written() -> None:
    """Else what a process has planned before would say which."""
    alone = [resolve(guidance_scale=scale) for scale in (0, 0.0, -0.0)]
    assert len({one.job_id for one in alone}) == 1


def test_a_guidance_of_its_own_is_the_same_line_among_others_as_alone() -> None:
    """What lines with different ones share is found out once."""
    resolver = Resolver(TABLE, PlanOptions(), FINGERPRINTS)
    for model in ("shapes", "null"):
        for scale in (None, 0, 2, 2.0, 0.1, 1e-7, 99.9):
            for other in ({}, {"width": 72}, {"negative_prompt": "x"} if model == "shapes" else {}):
                given = {"prompt": "p", "model": model, "guidance_scale": scale} | other
                body = {name: value for name, value in given.items() if value is not None}
                line = parse_line(1, json.dumps(body).encode())
                assert not isinstance(line, list), line
                found = resolver.resolve(0, line.task, line.body, "")
                assert found == resolve(**body)
                assert found.key.guidance_scale == (3.0 if scale is None else scale)


def test_the_order_of_lines_changes_no_job_id(tmp_path: Path) -> None:
    lines = [{"custom_id": f"row {i}", "prompt": f"p{i}"} for i in range(500)]
    shuffled = random.Random(1).sample(lines, len(lines))
    (first,), (second,) = plan(tmp_path / "a", lines), plan(tmp_path / "b", shuffled)
    assert sorted(first.jobs) == sorted(second.jobs)


NAME = f"sha256:{'0' * 64}"


def test_job_ids_and_shards_stay_what_they_were(tmp_path: Path) -> None:
    """Of every kind of line without a mask: runs of before go on, and nothing renders twice."""
    lines: list[dict[str, Any]] = [
        {"custom_id": "drawn", "prompt": "a red circle"},
        {"prompt": "a blue star", "seed": 7, "negative_prompt": "red", "width": 72},
        {"custom_id": "edited", "prompt": "green", "image": NAME, "strength": 0.5},
        {"prompt": "turn it", "image": {"image": NAME}, "model": "shapes-edits"},
        {"prompt": "a heart", "control_images": [NAME], "model": "shapes-edges"},
        {"custom_id": "many", "prompt": "{{ n_ }}", "n": 2, "sweep": {"n_": ["a", "b"]}},
    ]
    manifest = tmp_path / "m"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fingerprints = {name: name for name in TABLE.models}
    (block,) = plan_blocks(str(manifest), TABLE, PlanOptions(), fingerprints)
    assert sha256(block.shard).hexdigest() == (
        "131cc68cce46e5cc8e639c3312085e51f546fea0f6654b5bbb5f8ed4d10ac9b8"
    )


def test_a_shard_holds_one_key_for_lines_with_a_guidance_each(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{i}", "guidance_scale": i % 700 / 7} for i in range(3000)]
    lines += [{"prompt": "as the model has it"}, {"prompt": "", "negative_prompt": ""}]
    (block,) = plan(tmp_path / "m", lines)
    held = orjson.loads(block.shard)
    assert len(held["keys"]) < 10
    storage = open_storage(str(tmp_path))
    storage.write(layout.shard("f" * 12, 0), block.shard)
    requests = {one.index: one for one in read_shard(storage, "f" * 12, 0)}
    model = TABLE.get(TABLE.default or "")
    for index, line in enumerate(lines):
        key = requests[index].key
        assert key.guidance_scale == line.get("guidance_scale", model.guidance_scale)
        assert key.negative == ("negative_prompt" in line)


@pytest.mark.parametrize("place", [-1, [-1, 3.0], [9999, 3.0], [0], [0, "x"], [0, 3.0, 1], "x"])
def test_a_shard_whose_rows_name_no_key_is_refused(tmp_path: Path, place: object) -> None:
    (block,) = plan(tmp_path / "m", [{"prompt": "a"}])
    held = orjson.loads(block.shard)
    held["rows"][0][2] = place
    storage = open_storage(str(tmp_path))
    storage.write(layout.shard("f" * 12, 0), orjson.dumps(held))
    with pytest.raises(FatalError, match="is no plan that imagemill wrote"):
        read_shard(storage, "f" * 12, 0)


def test_duplicates_are_refused_across_blocks(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"custom_id": f"row {i}", "prompt": "p"} for i in range(5000)]
    lines[10] = {"prompt": "same"}
    lines[20] = {"prompt": "same"}
    lines[4999] = {"custom_id": "row 7", "prompt": "other"}
    first, second, carried = plan(tmp_path / "m", lines)
    assert [error.line for error in first.errors] == [21]
    assert [error.line for error in second.errors] == [5000]
    assert first.requests + second.requests == 4998
    assert carried.requests == 0 < carried.carried


def test_lines_without_custom_id_may_differ_by_seed_alone(tmp_path: Path) -> None:
    (block,) = plan(tmp_path / "m", [{"prompt": "same", "seed": seed} for seed in range(3)])
    assert block.errors == []
