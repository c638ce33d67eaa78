"""`imagemill check-determinism`: what it renders, and that it finds what it looks for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from jobs.errors import UsageError
from worker.commands import determinism
from worker.commands.trials import FIRST, PROCESS, Comparison, Findings, Trial, hold, ways
from worker.inputs import Prepared
from worker.null import NullRenderer
from worker.render import Image

MODELS = """
default = "m"
[models.m]
repo = "null:"
size = [16, 16]
batch_width = 4
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(MODELS)
    return file


@pytest.fixture
def trial(table: Path) -> Trial:
    return Trial(
        models=str(table),
        route="m",
        device="cpu",
        slots=0,
        steps=0,
        compile=False,
        first=str(table.with_name("first.npy")),
    )


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_each_way_changes_one_thing(slots: int) -> None:
    count = max(2, slots)
    found = ways(count, slots)
    assert found["again"] == found[FIRST]
    for way, calls in found.items():
        assert max(map(len, calls)) <= slots, way
    flat = {way: [number for call in calls for number in call] for way, calls in found.items()}
    assert flat["in another order"] == flat[FIRST][::-1]
    assert [number for number in flat["among others"] if number < count] == flat[FIRST]
    assert set(flat["among others"]) == set(range(2 * count))
    if slots == 1:
        assert "padded" not in found
    else:
        assert all(0 < len(call) < slots for call in found["padded"])


def test_an_honest_renderer_is_the_same_in_every_way(trial: Trial) -> None:
    found = hold(trial)
    assert {one.different for one in found.ways.values()} == {0}
    assert found.stack
    assert found.stack.batch_width == 4
    assert hold(trial).ways == {PROCESS: Comparison(4, 0, 0)}


def _numbers(batch: list[Prepared]) -> set[int]:
    return {one.request.index for one in batch}


@pytest.mark.parametrize(
    ("spoils", "ways"),
    [
        (lambda _, place: place == 2, {"in another order", "among others"}),
        (lambda batch, _: max(_numbers(batch)) >= 4, {"among others"}),
        (lambda batch, _: len(_numbers(batch)) < 4, {"padded"}),
    ],
    ids=["position", "neighbours", "padding"],
)
def test_what_depends_on_more_than_the_request_is_found(
    trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
    spoils: Callable[[list[Prepared], int], bool],
    ways: set[str],
) -> None:
    render = NullRenderer.render

    def spoiled(self: NullRenderer, batch: list[Prepared], *rest: Any) -> list[Image]:
        images = enumerate(render(self, batch, *rest))
        return [image ^ 2 if spoils(batch, place) else image for place, image in images]  # type: ignore[operator]

    monkeypatch.setattr(NullRenderer, "render", spoiled)
    found = hold(trial).ways
    assert {way for way, one in found.items() if one.different} == ways
    assert {found[way].most for way in ways} == {2}


def test_what_depends_on_the_process_is_found(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(trial)
    monkeypatch.setattr("worker.null._colour", lambda seed: [seed % 251, 0, 0])
    assert hold(trial).ways[PROCESS].different == 4


def test_slots_that_the_model_does_not_have_are_refused(table: Path) -> None:
    with pytest.raises(UsageError, match="8 slots are no power of two up to m's batch_width, 4"):
        hold(
            Trial(
                models=str(table),
                route="m",
                device="cpu",
                slots=8,
                steps=0,
                compile=False,
                first=str(table.with_name("first.npy")),
            )
        )


def test_the_command_renders_in_processes_of_its_own(table: Path) -> None:
    options = ["m", "--devices", "cpu", "--slots", "2", "--models-file", str(table)]
    command = [sys.executable, "-m", "producer", "check-determinism", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert "2 slots" in shown[0]
    assert [line.split("  ")[0] for line in shown[2:]] == [*list(ways(2, 2))[1:], PROCESS]
    assert shown[-1].count("same, 2 of 2") == 2


@pytest.mark.parametrize(
    ("off", "on", "code"),
    [
        (Findings({"again": Comparison(4, 0, 0)}), Findings({"again": Comparison(4, 1, 3)}), 1),
        (Findings({"again": Comparison(4, 0, 0)}), Findings(problem="no compiler"), 0),
        (Findings(problem="no weights"), Findings(), 1),
    ],
    ids=["differs", "cannot compile", "cannot render"],
)
def test_the_exit_code_says_whether_bytes_differ(
    table: Path, monkeypatch: pytest.MonkeyPatch, off: Findings, on: Findings, code: int
) -> None:
    monkeypatch.setattr(determinism, "_twice", lambda trial, _: on if trial.compile else off)
    options = ["m", "--devices", "cpu", "--models-file", str(table)]
    result = CliRunner().invoke(determinism.app, options)
    assert result.exit_code == code
    for text in (off.problem, on.problem):
        assert text in result.output
    if code == 0 or on.ways:
        shown = CliRunner().invoke(determinism.app, [*options, "--json"])
        assert orjson.loads(shown.stdout)["same"] == (code == 0)
        assert ("1 of 4 DIFFER, by up to 3/255" in result.output) == bool(code)
