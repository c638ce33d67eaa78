"""One manifest line that stands for many images: each has an identity that stays."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UsageError
from jobs.models.table import load_models
from jobs.output.plan import SHARD_LINES, read_shard
from jobs.output.storage import open_storage
from jobs.requests import Request
from producer.planning import processes
from producer.planning.blocks import plan_blocks
from producer.planning.planner import PlannedBlock
from producer.planning.resolution import PlanOptions

# One slot a call, or rows would lie by their slots (test_slots.py) and not as they were planned.
_KNOWN = load_models()
_NARROW = {name: row.model_copy(update={"batch_width": 1}) for name, row in _KNOWN.models.items()}
TABLE = replace(_KNOWN, models=_NARROW)
FINGERPRINTS = {"null": "n", "shapes": "s", "shapes-edits": "e"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(*lines: dict[str, Any], **options: Any) -> list[PlannedBlock]:
    Path("m.jsonl").write_text("".join(json.dumps({"prompt": "cat"} | one) + "\n" for one in lines))
    wanted = PlanOptions(**({"model": "null"} | options))
    return list(plan_blocks("m.jsonl", TABLE, wanted, dict(FINGERPRINTS)))


def images(*, options: dict[str, Any] | None = None, **line: Any) -> list[Request]:
    """The requests of a manifest of one line, which is a good one."""
    (block,) = plan(line, **(options or {}))
    assert block.errors == []
    storage = open_storage("out")
    storage.write("_run/r/plan/00000.json", block.shard)
    return read_shard(storage, "r", 0)


def reasons(**line: Any) -> list[str]:
    return [str(error) for block in plan(line) for error in block.errors]


def test_a_line_that_repeats_itself_is_told_apart_from_one_that_repeats_another() -> None:
    seeds = {"sweep": {"seed": [1, 2]}}
    (reason,) = reasons(n=3, **seeds)
    assert reason.startswith("line 1: stands for one image more than once")
    assert reasons(n=3, custom_id="x", **seeds) == reasons(n=3, sweep={"seed": [1, 4]}) == []
    (reason,) = reasons(custom_id="x", zip={"seed": [1, 1]})
    assert reason.startswith("line 1: stands for one image more than once")
    (block,) = plan({"seed": 2}, seeds)
    (error,) = block.errors
    assert str(error).startswith("line 2: repeats an earlier line")


@pytest.mark.parametrize("custom_id", ["", "x"])
def test_more_images_keep_the_ones_that_were(custom_id: str) -> None:
    line = {"custom_id": custom_id} if custom_id else {}
    one, four, eight = images(**line), images(**line, n=4), images(**line, n=8)
    assert [r.custom_id for r in four] == (
        [f"x{i}" for i in ("", "#1", "#2", "#3")] if line else [""] * 4
    )
    assert len({r.seed for r in eight}) == 8
    assert one == four[:1]
    assert four == eight[:4]
    assert images(**line, options={"n": 4}) == four
    assert images(**line, n=1, options={"n": 4}) == one


def test_a_given_seed_counts_up() -> None:
    assert [r.seed for r in images(seed=2**64 - 2, n=3)] == [2**64 - 2, 2**64 - 1, 0]


def test_a_sweep_is_a_grid_and_zip_goes_side_by_side() -> None:
    found = images(
        custom_id="x",
        sweep={"guidance_scale": [1, 3.5], "num_inference_steps": [4, 8]},
        zip={"width": [64, 72], "height": [72, 64]},
    )
    keys = [r.key for r in found]
    assert len(found) == 8
    assert {(k.guidance_scale, k.steps) for k in keys} == {(1, 4), (1, 8), (3.5, 4), (3.5, 8)}
    assert {(k.width, k.height) for k in keys} == {(64, 72), (72, 64)}
    assert "x[guidance_scale=3.5,height=72,num_inference_steps=4,width=64]" in {
        r.custom_id for r in found
    }


def test_a_longer_sweep_in_another_order_keeps_what_was() -> None:
    few = images(custom_id="x", n=2, sweep={"guidance_scale": [1, 3], "width": [64]})
    more = images(custom_id="x", n=3, sweep={"width": [72, 64], "guidance_scale": [5, 3, 1]})
    assert {r.job_id for r in few} < {r.job_id for r in more}
    assert len({r.job_id for r in more}) == 18


def test_templates_are_filled_once_with_texts_and_numbers() -> None:
    found = images(
        prompt="a {{ color }} {{animal}}",
        negative_prompt="{{ color }}",
        sweep={"color": ["red", "{{ animal }}"], "animal": ["cat", 3.0]},
    )
    assert {r.prompt for r in found} == {
        "a red cat", "a red 3", "a {{ animal }} cat", "a {{ animal }} 3"
    }  # fmt: skip
    assert {r.negative_prompt for r in found} == {"red", "{{ animal }}"}


def test_samples_are_drawn_by_weight_from_the_run_s_seed() -> None:
    line = {"prompt": "a {{ animal }}", "sample": {"animal": {"cat": 3, "dog": 1}}}
    for named in ({}, {"custom_id": "x"}):
        drawn = images(**line, **named, n=2000)
        counts = Counter(r.prompt for r in drawn)
        assert counts["a cat"] == pytest.approx(1500, abs=80)
        assert images(**line, **named, n=500) == drawn[:500]
        others = images(**line, **named, n=500, options={"seed": 1})
        assert [r.prompt for r in others] != [r.prompt for r in drawn[:500]]


def test_images_of_a_line_may_be_edits_of_several_inputs() -> None:
    sources = ["https://a.example/1.png", "https://a.example/2.png"]
    found = images(model="shapes-edits", sweep={"image": sources}, n=2)
    assert [(r.key.task, *r.images) for r in found] == [("edit", s) for s in sources for _ in "ab"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"custom_id": "x" * 511, "n": 2}, "custom_id: with '#1' it has more than 512 characters"),
        ({"prompt": "x" * 30_000, "n": 2000}, "prompt: all of the line's have more than"),
        ({"prompt": "{{ a }}" * 101, "sweep": {"a": [1]}}, "prompt: has names in more than 100"),
        ({"n": 0}, "n: input should be greater than or equal to 1 (got 0)"),
        ({"n": 10_001}, "n: input should be less than or equal to 10000"),
        ({"n": 9_999, "sweep": {"width": [64, 72]}}, "sweep: the line stands for 19,998 images"),
        ({"sweep": {"width": []}}, "sweep.width: list should have at least 1 item"),
        ({"sweep": {"width": [65]}}, "width: 65 is no multiple of 8"),
        ({"sweep": {"width": ["x"]}}, "width: input should be a valid integer (got x)"),
        ({"sweep": {"widht": [64]}}, "sweep.widht: is no field, and no prompt has {{ widht }}"),
        ({"sweep": {"prompt": ["a"]}}, "sweep.prompt: the line gives it a value as well; write {{"),
        ({"sweep": {"width": [64]}, "sample": {"width": [72]}}, "sample.width: sweep has it as"),
        ({"sweep": {"seed": [5, 5]}}, "sweep.seed: has a value twice"),
        ({"zip": {"width": [64, 72], "height": [64]}}, "zip: its lists have different lengths"),
        ({"prompt": "{{ a }}", "sweep": {"width": [64]}}, "prompt: nothing says what {{ a }}"),
        ({"sample": {"width": {"64": 0}}}, "sample.width.64: input should be greater than 0"),
        ({"sweeep": {"width": [64]}}, "sweeep: unknown field; did you mean 'sweep'?"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(line: dict[str, Any], reason: str) -> None:
    assert any(found.startswith(f"line 1: {reason}") for found in reasons(**line)), reasons(**line)


@pytest.mark.parametrize(
    ("line", "all_reasons"),
    [
        ({"sample": {"a": {"b": 0}}}, ["sample.a.b: input should be greater than 0 (got 0)"]),
        ({"sample": {"a": {"b": "c"}}}, ['sample.a.b: input should be a valid number (got "c")']),
        ({"sweep": {"width": [64, None], "height": 5}}, [
            "sweep.height: input should be a valid array (got 5)",
            "sweep.width[1]: must be a text, a whole number or a number (got null)",
        ]),
        ({"image": 5}, ["image: must be an object, a text or a list (got 5)"]),
        ({"image": [5]}, ["image[0]: must be an object or a text (got 5)"]),
        ({"image": {"url": "u"}}, ["image.image: is required", "image.url: unknown field"]),
        ({"keep": {"a": [1]}}, [
            "keep.a: must be a text, true or false, a whole number or a number (got [1])",
        ]),
    ],
)  # fmt: skip
def test_a_line_s_reason_names_its_place_and_no_alternative_that_was_not_meant(
    line: dict[str, Any], all_reasons: list[str]
) -> None:
    assert sorted(reasons(**line)) == [f"line 1: {reason}" for reason in all_reasons]


def test_one_bad_combination_refuses_the_line_and_no_other() -> None:
    (block,) = plan({"sweep": {"width": [64, 65]}}, {"n": 3})
    assert ({error.line for error in block.errors}, block.requests, block.lines) == ({1}, 3, 1)


def test_braces_of_a_line_that_varies_nothing_are_its_own() -> None:
    assert [r.prompt for r in images(prompt="{{ a }}", n=2)] == ["{{ a }}"] * 2


@pytest.mark.parametrize("lines", [9, 3 * SHARD_LINES + 9])
def test_many_images_are_cut_into_shards_of_bounded_size(lines: int) -> None:
    """In this process and, from four blocks on, in several."""
    made = [{"custom_id": f"{i}"} for i in range(lines)]
    made[2]["n"] = made[3]["n"] = 3000  # type: ignore[assignment]
    made[5]["n"] = 10_000  # type: ignore[assignment]
    made[8] = {"custom_id": "2#7"}
    found = plan(*made)
    assert [error.line for block in found for error in block.errors] == [9]
    assert sum(block.requests for block in found) == lines - 4 + 16_000
    assert sum(block.lines for block in found) == lines - 1
    numbers = [int(n) for block in found for n in block.numbers]
    assert numbers == sorted(numbers)
    assert sorted(b.requests for b in found if b.lines > 1)[-1] <= SHARD_LINES
    assert len(plan({}, {}, {}, n=3000)) == 3


def test_what_may_not_be_meant_is_told_and_rendered() -> None:
    filled = {"prompt": "a {{ color }}", "sweep": {"color": ["red", " "]}}
    odd = [
        {"prompt": " "},
        {"prompt": "a {{ color }} {{x}}"},
        {"prompt": "b", "negative_prompt": "{{ color }}", "n": 2, "model": "shapes"},
        {"prompt": "{{ color }}", "sweep": {"color": ["", "red"]}},
    ]
    (block,) = plan(filled, {"prompt": "{ {a} } }}"}, *odd)
    assert (block.errors, block.requests) == ([], 9)
    assert [str(one) for one in block.doubts] == [
        "line 3: prompt: is empty: the model gets no text",
        "line 4: prompt: nothing fills {{ color }}: the model gets it as it stands",
        "line 5: negative_prompt: nothing fills {{ color }}: the model gets it as it stands",
        "line 6: prompt: is empty: the model gets no text",
    ]


def test_an_accident_is_refused_before_it_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_EXPANDED", 20_000)
    with pytest.raises(UsageError, match="the lines up to 3 stand for more than 20,000 images"):
        plan(*[{"n": 9_000}] * 3)
