"""What device and driver there are, and whether every family of pipelines is right on them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pynvml
import torch

from benchmarks.gpu.step import Day, Notes
from benchmarks.measure import hardware
from jobs.errors import FatalError
from worker.process.gpus import Machine
from worker.versions import installed

ROOT = Path(__file__).parents[2]
TESTS = ("tests/gpu", "tests/integration/test_families.py")
CHEAP = ("tests/integration/test_families.py", "-k", "agrees_with_diffusers and flux")
TOLD = 2.0  # seconds between two counts in the file

_RESULT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")
_TEST = re.compile(r"tests/\S+::.+?(?= (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b|$)")


def tell_device(day: Day, notes: Notes) -> None:
    """The device as driver and torch describe it, and one operation on it."""
    notes.tell(
        machine=hardware(),
        driver=Machine().driver(),
        versions=installed("torch", "diffusers", "transformers", "accelerate", "triton"),
        cuda=torch.version.cuda,
        dtype="bfloat16" if day.device == "cuda" else "float32",
    )
    if day.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        notes.tell(
            name=about.name,
            memory=about.total_memory,
            capability=f"{about.major}.{about.minor}",
            processors=about.multi_processor_count,
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            **_limits(),
        )
    square = torch.ones(64, 64, device=day.device)
    notes.tell(computes=bool((square @ square == 64).all()))


def _limits() -> dict[str, object]:
    """What the driver holds the GPU to. Another process on it is told too: figures suffer."""
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "watts": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "megahertz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_used": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        }
    except pynvml.NVMLError as error:  # a MIG instance has none of its own
        return {"limits": f"NVML says {error}"}
    finally:
        pynvml.nvmlShutdown()


def test_families(day: Day, notes: Notes) -> None:
    """What CI checks of pipelines on the CPU, on this device. Raises FatalError if a test fails."""
    own = ["--device", day.device, "--dtype", "bfloat16" if day.device == "cuda" else "float32"]
    command = [
        sys.executable, "-m", "pytest", *(TESTS if day.is_real else CHEAP), *own,
        "-m", "gpu or not gpu" if day.device == "cuda" else "not gpu", "-W", "default",
        "-v", "-n", "4" if day.is_real else "0", "--color", "no",
    ]  # fmt: skip
    counts = dict.fromkeys(["passed", "failed"], 0)
    failed: list[str] = []
    written = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        for line in tests.stdout:
            sys.stdout.write(line)  # into the step's log, with what the failures say
            test, result = _TEST.search(line), _RESULT.search(line)
            if "::" not in line or test is None or result is None or " - " in line:
                continue
            is_bad = result[1] in ("FAILED", "ERROR")
            counts["failed" if is_bad else "passed"] += 1
            failed += [test[0].strip()] if is_bad else []
            if is_bad or time.monotonic() - written > TOLD:
                notes.tell(**counts, failures=failed)
                written = time.monotonic()
    notes.tell(**counts, failures=failed)
    if tests.returncode:
        raise FatalError(f"{counts['failed']} tests failed: exit code {tests.returncode}")
