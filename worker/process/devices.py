"""Which devices this machine has, found without torch."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from jobs.errors import UsageError


@dataclass(frozen=True, slots=True)
class Device:
    """One device process. `visible` is its CUDA_VISIBLE_DEVICES; empty for the CPU."""

    name: str
    visible: str

    @property
    def kind(self) -> str:
        return "cuda" if self.visible else "cpu"


def choose_devices(wanted: str, cpu_workers: int | None = None) -> list[Device]:
    """The devices that `--devices` names: "auto", "cpu" or numbers of GPUs ("0,1").

    Where CUDA_VISIBLE_DEVICES is set, only its entries are there to be chosen.

    cpu_workers: how many processes share the CPU; 1 when not given.

    Raises:
        UsageError: it names something else, or a GPU that is not there.
    """
    gpus = [] if wanted == "cpu" else find_gpus()
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return [Device(f"cpu{number}", "") for number in range(cpu_workers or 1)]
    if cpu_workers is not None:
        raise UsageError(
            "--workers counts processes that share the CPU", "Add --devices cpu, or leave it out."
        )
    numbers = gpus if wanted == "auto" else wanted.split(",")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--devices {wanted} names a GPU twice")
    for number in numbers:
        if number not in gpus:
            raise UsageError(
                f"--devices {wanted}: no GPU {number!r}; found: {', '.join(gpus) or 'none'}",
                "Use auto, cpu or numbers that `nvidia-smi -L` and CUDA_VISIBLE_DEVICES list.",
            )
    return [
        Device(f"gpu{number if number.isdigit() else gpus.index(number)}", number)
        for number in numbers
    ]


def find_gpus() -> list[str]:
    """The GPUs that the driver sees and CUDA_VISIBLE_DEVICES allows, as that variable names them.

    Numbers, or what it holds itself: "GPU-…" and "MIG-…" are names as well.
    """
    numbers = _numbers()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None or not numbers:
        return numbers
    entries = [entry.strip() for entry in allowed.split(",")]
    return [one for one in entries if one in numbers or one.startswith(("GPU-", "MIG-"))]


def _numbers() -> list[str]:
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (FileNotFoundError, subprocess.SubprocessError):
        return []
    return [
        line.removeprefix("GPU ").split(":", 1)[0]
        for line in listing.splitlines()
        if line.startswith("GPU ")
    ]
