"""One command for a day with a GPU: all that only a GPU shows, in ten minutes, as JSON.

    make gpu                                                          # on a machine with CUDA
    python -m benchmarks.gpu_day OUT [--steps sdxl,job] [--seconds 600]
    python -m benchmarks.gpu_day OUT --device cpu --scale tiny        # the same steps, anywhere

Each step is a process that has its share of the time, and what those before it have left over: one
that fails, dies or takes too long is recorded with what it had found, and the next one runs. What
each found is in OUT/<step>.json as it ends, and in OUT/<step>.found while it runs; OUT/day.json has
the state of all. docs/17-operation.md says how to read them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from benchmarks.gpu.step import Day
from jobs import children
from jobs.errors import ImagemillError
from worker.process.devices import Device, choose_devices
from worker.process.environment import environment

State = Literal["done", "failed", "cut off"]


@dataclass(frozen=True, slots=True)
class Step:
    """What is run, as "module:function", and its share of the time: seconds of ten minutes."""

    name: str
    function: str
    share: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step went.

    most: seconds that it had; problem: why it is not done; found: what it had told by then.
    """

    step: str
    state: State
    seconds: float
    most: float
    problem: str
    found: dict[str, Any]


STEPS = (
    Step("device", "benchmarks.gpu.machine:tell_device", 20),
    Step("families", "benchmarks.gpu.machine:test_families", 110),
    Step("sdxl", "benchmarks.gpu.sdxl:measure", 130),
    Step("sdxl-again", "benchmarks.gpu.sdxl:repeat", 45),
    Step("flux", "benchmarks.gpu.flux:measure", 100),
    Step("flux-again", "benchmarks.gpu.flux:repeat", 45),
    Step("job", "benchmarks.gpu.job:compare", 110),
    Step("gaps", "benchmarks.gpu.gaps:profile", 40),
)


def spend(day: Day, device: Device, steps: Sequence[Step], seconds: float) -> Iterator[Ended]:
    """Run steps one after the other, each as it ends; all within so many seconds."""
    began, whole = time.monotonic(), sum(step.share for step in steps)
    ended: list[Ended] = []
    until = 0.0
    for step in steps:
        until += seconds * step.share / whole
        one = run(day, device, step, until - (time.monotonic() - began))
        _write(day.out / f"{step.name}.json", asdict(one))
        ended.append(one)
        told = [{"step": e.step, "state": e.state, "seconds": e.seconds} for e in ended]
        header = {"device": day.device, "scale": day.scale, "seconds": time.monotonic() - began}
        _write(day.out / "day.json", header | {"steps": told})
        yield one


def run(day: Day, device: Device, step: Step, most: float) -> Ended:
    """Run one step in a process of its own, in the environment that a worker gives to a device."""
    found, log = day.out / f"{step.name}.found", day.out / f"{step.name}.log"
    found.unlink(missing_ok=True)
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(day.weights / "compiled")}
    own = os.environ | compiled
    own |= {name: value for name, value in environment(device, 1).items() if name not in compiled}
    asked = orjson.dumps(day, default=str).decode()
    command = [sys.executable, "-P", "-m", "benchmarks.gpu.step", step.function, str(found), asked]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [own.get("PYTHONPATH")])])
    started = time.monotonic()
    with log.open("wb") as file:
        process = children.start(command, own | {"PYTHONPATH": path}, file)
        try:
            process.wait(most)
        except subprocess.TimeoutExpired:
            pass
        finally:
            state: State = "cut off" if process.poll() is None else "failed"
            children.kill(process)
    seconds = time.monotonic() - started
    told: dict[str, Any] = {}
    with suppress(OSError):
        told = orjson.loads(found.read_bytes())
        found.unlink()
    if process.returncode == 0:
        return Ended(step.name, "done", seconds, most, "", told)
    problem = f"it had {most:.0f} s" if state == "cut off" else children.reason(process.returncode)
    return Ended(step.name, state, seconds, most, f"{problem}\n{_end(log)}".strip(), told)


def _end(log: Path) -> str:
    return log.read_bytes()[-2000:].decode(errors="replace").strip()


def _write(file: Path, content: object) -> None:
    file.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", choices=("real", "tiny"), default="real")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all steps together")
    parser.add_argument("--steps", default=",".join(step.name for step in STEPS))
    parser.add_argument("--weights", type=Path, help="where models are built; OUT/weights")
    options = parser.parse_args()
    names = options.steps.split(",")
    if unknown := set(names) - {step.name for step in STEPS}:
        parser.error(f"--steps: there is no step {', '.join(sorted(unknown))}")
    try:
        device = choose_devices("auto" if options.device == "cuda" else "cpu")[0]
    except ImagemillError as error:
        print(error, file=sys.stderr)
        return 2
    if device.kind != options.device:
        print(
            "This machine has no NVIDIA GPU, and figures of a CPU tell nothing of one. To see that "
            "the steps run: python -m benchmarks.gpu_day OUT --device cpu --scale tiny",
            file=sys.stderr,
        )
        return 2
    out = options.out.resolve()
    weights = (options.weights or out / "weights").resolve()
    for folder in (out, weights):
        folder.mkdir(parents=True, exist_ok=True)
    day = Day(options.device, options.scale, out, weights)
    good = True
    for one in spend(day, device, [s for s in STEPS if s.name in names], options.seconds):
        good = good and one.state == "done"
        why = one.problem.splitlines()[-1] if one.problem else ""
        print(f"{one.step:10} {one.state:9} {one.seconds:6.1f} s  {why}", flush=True)
    print(f"What was found: {out}/*.json")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
