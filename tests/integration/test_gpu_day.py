"""`make gpu` without a GPU: its steps with tiny models on the CPU, and what becomes of bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_day
from benchmarks.gpu.gaps import merged
from benchmarks.gpu.step import Day
from benchmarks.gpu_day import STEPS, Ended, Step, spend
from benchmarks.real_sizes import flux_transformer, sdxl_unet
from worker.process.devices import Device

CPU = Device("cpu0", "")


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day("cpu", "tiny", tmp_path, tmp_path / "weights")


def told(day: Day, step: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((day.out / f"{step}.json").read_text())
    return content


def test_a_bad_step_is_recorded_with_what_it_had_found_and_the_next_one_runs(day: Day) -> None:
    names = ("hangs", "raises", "refuses", "dies", "tells")
    steps = [Step(name, f"tests.steps:{name}", 8 if name == "hangs" else 60) for name in names]
    ended = {one.step: one for one in spend(day, CPU, steps, 248)}
    assert {name: told(day, name)["state"] for name in names} == {
        "raises": "failed",
        "refuses": "failed",
        "dies": "failed",
        "hangs": "cut off",
        "tells": "done",
    }
    assert "ZeroDivisionError: of the test" in told(day, "raises")["problem"]
    assert ended["refuses"].problem.endswith("bytes differ")
    assert "Traceback" not in ended["refuses"].problem
    assert "SIGSEGV" in ended["dies"].problem
    assert ended["hangs"].problem.startswith("it had 8 s")
    assert all(told(day, name)["found"] == {"half": 1} for name in ("raises", "dies", "hangs"))
    assert told(day, "tells")["found"] == {"device": "cpu", "rows": [{"number": 1}, {"number": 2}]}
    whole = json.loads((day.out / "day.json").read_text())
    assert [step["state"] for step in whole["steps"]] == [one.state for one in ended.values()]


def test_a_step_has_its_share_of_the_time_and_what_others_left(
    day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, had = [0.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def run(_: Day, __: Device, step: Step, most: float) -> Ended:
        had.append(most)
        now[0] += min(most, 100.0)
        return Ended(step.name, "done", 0.0, most, "", {})

    monkeypatch.setattr(gpu_day, "run", run)
    list(spend(day, CPU, [Step("a", "", 30), Step("b", "", 20), Step("c", "", 10)], 600))
    assert had == [300, 400, 400]


def test_a_machine_without_cuda_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_day, "choose_devices", lambda _: [CPU])
    monkeypatch.setattr(sys, "argv", ["gpu_day", str(tmp_path / "out")])
    assert gpu_day.main() == 2
    assert "no NVIDIA GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_spans_that_overlap_are_one() -> None:
    assert merged([(5, 6), (0, 2), (1, 3), (1, 2)]) == [(0, 3), (5, 6)]


@pytest.mark.parametrize(
    ("make", "parameters"), [(sdxl_unet, 2_567_463_684), (flux_transformer, 11_901_408_320)]
)
def test_real_sizes_are_those_of_the_released_models(
    make: Callable[[], torch.nn.Module], parameters: int
) -> None:
    with torch.device("meta"):  # without their weights
        model = make()
    assert sum(one.numel() for one in model.parameters()) == parameters


@pytest.mark.timeout(600)
def test_every_step_runs_on_the_cpu_with_tiny_models(day: Day) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_day", str(day.out)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--scale", "tiny"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(" done ") == len(STEPS)
    found = {step.name: told(day, step.name)["found"] for step in STEPS}
    assert found["device"]["computes"]
    assert "torch" in found["device"]["versions"]
    assert found["families"]["passed"] > 0
    assert found["families"]["failures"] == []
    cases = [(size, slots) for size in (64, 128) for slots in (1, 4)]
    sdxl = found["sdxl"]
    for row in sdxl["calls"]:
        parts = [row[name] for name in ("encode", "step", "decode", "copy")]
        assert all(part > 0 for part in parts[1:])
        assert row["peak_bytes"] > 0
        assert row["step"] < row["call"]
    for row, again in zip(sdxl["bytes"], found["sdxl-again"]["bytes"], strict=True):
        padded = {"padded"} if row["slots"] > 1 else set()
        assert set(row["different"]) == {"again", "in another order", "among others"} | padded
        assert not any(row["different"].values())
        assert row["contrast"] > 1
        assert len(row["sha256"]) == again["compared"] == max(2, row["slots"])
        assert again["different"] == 0
    for table in (sdxl["calls"], sdxl["bytes"], found["sdxl-again"]["bytes"]):
        assert [(row["size"], row["slots"]) for row in table] == cases
    modes = [(row["mode"], row["slots"]) for row in found["flux"]["steps"]]
    assert modes == [(mode, slots) for mode in ("eager", "compiled") for slots in (1, 2, 4)]
    for row in found["flux"]["steps"]:
        assert row["equal"]
        assert row["finite"]
        assert (row["compiling"] > 0) == (row["mode"] == "compiled")
    assert (found["flux-again"]["compared"], found["flux-again"]["different"]) == (3, 0)
    [job] = found["job"]["jobs"]
    assert job["ratio"] > 0
    assert 0 < job["busy"] <= 1
    for row in found["gaps"]["profiles"]:
        assert 0 < row["busy"] <= 1
        assert len(row["longest_milliseconds"]) == 10
