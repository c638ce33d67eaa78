"""How many requests a call is best given: what is tried, what is chosen, what is refused."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.errors import UsageError
from jobs.models.table import ModelTable, load_models
from worker.commands.tuning import Pace, Tuning, as_text, measure, parse_size
from worker.render import Pause
from worker.renderers import Renderers

TABLE = """
default = "m"
[models.m]
repo = "null:"
size = [64, 64]
size_multiple = 16
steps = 3
[models.alone]
repo = "null:"
family = "z-image"
size = [64, 64]
[models.edits]
repo = "null:"
family = "instruct-pix2pix"
size = [64, 64]
"""


@pytest.fixture
def table(tmp_path: Path) -> ModelTable:
    file = tmp_path / "models.toml"
    file.write_text(TABLE)
    return load_models(file)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A call costs 8 s and 1 s an image, and 8 images do not fit. Returns the calls' widths."""
    now, widths = [0.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def render(batch: list[object], _: Pause) -> None:
        widths.append(len(batch))
        if len(batch) == 8:
            raise MemoryError("full")
        now[0] += 8 + len(batch)

    stack = SimpleNamespace(pipeline="StableDiffusionPipeline")
    got = SimpleNamespace(renderer=SimpleNamespace(render=render, stack_for=lambda _: stack))
    monkeypatch.setattr(Renderers, "get", lambda *_: got)
    return widths


def test_widths_are_doubled_until_memory_runs_out(table: ModelTable, device: list[int]) -> None:
    found = measure(table, "m", (64, 64), 64, 30.0, "cpu")
    assert [(pace.width, pace.seconds) for pace in found.paces] == [(1, 9), (2, 5), (4, 3)]
    assert all(pace.memory > 0 for pace in found.paces)
    assert found.problem == "8 do not fit into memory"
    # One that warms up, then as many as 30 s take, and two at least.
    assert device == [1] * 5 + [2] * 4 + [4] * 4 + [8]
    assert len([*measure(table, "m", (64, 64), 2, 0.1, "cpu").paces]) == 2
    assert device[-6:] == [1] * 3 + [2] * 3


def test_a_family_of_one_request_a_call_is_tried_with_one(
    table: ModelTable, device: list[int]
) -> None:
    assert [pace.width for pace in measure(table, "alone", (64, 64), 64, 1.0, "cpu").paces] == [1]
    assert set(device) == {1}


def test_what_only_edits_is_refused(table: ModelTable) -> None:
    with pytest.raises(UsageError, match="model edits only edits"):
        measure(table, "edits", (64, 64), 64, 1.0, "cpu")


def test_what_does_not_fit_at_all_is_said(
    table: ModelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(*_: object) -> None:
        raise MemoryError("4096 bytes more were needed")

    stack = SimpleNamespace(pipeline="StableDiffusionPipeline")
    got = SimpleNamespace(renderer=SimpleNamespace(render=render, stack_for=lambda _: stack))
    monkeypatch.setattr(Renderers, "get", lambda *_: got)
    with pytest.raises(UsageError, match="64x64 needs more memory: 4096 bytes"):
        measure(table, "m", (64, 64), 64, 1.0, "cpu")


def test_the_least_width_that_is_nearly_as_fast_is_best() -> None:
    paces = [Pace(1, 1.0, 1), Pace(2, 0.52, 1), Pace(4, 0.5, 1), Pace(8, 0.51, 1)]
    found = Tuning(
        model="org/sd", size=(64, 64), steps=3, paces=paces, problem="16 do not fit into memory"
    )
    assert found.best.width == 2
    row = tomllib.loads("\n".join(as_text(found)))
    assert row == {"models": {"org/sd": {"batch_width": 2, "seconds_per_image": 0.52}}}


@pytest.mark.parametrize("size", ["64", "64x", "x64", "64x64x64", "-64x64", "0x64", "72x64", "axb"])
def test_a_size_that_is_none_is_refused(table: ModelTable, size: str) -> None:
    with pytest.raises(UsageError, match=f"--size {size}: ") as error:
        parse_size(size, table.get("m"))
    assert "64x64" in str(error.value.hint)


def test_a_size(table: ModelTable) -> None:
    assert parse_size("96x64", table.get("m")) == (96, 64)
    assert parse_size(None, table.get("m")) == (64, 64)
