"""Which devices this machine renders on, chosen without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import orjson

from jobs.errors import FatalError, ImagemillError, UsageError
from worker.process.gpus import Gpu, Machine
from worker.versions import TorchBuild, torch_build

_ON_THE_CPU = "start with --devices cpu to render on the CPU"


@dataclass(frozen=True, slots=True)
class Device:
    """One device process. `visible` is its CUDA_VISIBLE_DEVICES; empty for the CPU.

    cores: where its process is to run, near its GPU; anywhere if empty.
    """

    name: str
    visible: str
    cores: frozenset[int] = frozenset()

    @property
    def kind(self) -> str:
        return "cuda" if self.visible else "cpu"


Place = tuple[Gpu, Device]  # a device, and the GPU that it is or is part of


def choose_devices(
    wanted: str, cpu_workers: int | None = None, machine: Machine | None = None
) -> list[Device]:
    """The devices that `--devices` names: "auto", "cpu", or GPUs by number, UUID or MIG id.

    Each MIG instance is a device of its own. Where CUDA_VISIBLE_DEVICES is set, only its entries
    are there to be chosen. "auto" is the CPU only where there is no GPU, or where that variable
    hides all: never because one cannot be used.

    cpu_workers: how many processes share the CPU; 1 when not given.

    Raises:
        UsageError: it names something else, or a GPU that is not there.
        FatalError: there are GPUs, but the driver or this build of torch cannot use them.
    """
    machine = machine or Machine()
    hidden = _hides_all(os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = [] if wanted == "cpu" or hidden else _find(wanted, machine)
    if wanted == "cpu" or (wanted == "auto" and not found):
        return [Device(f"cpu{number}", "") for number in range(cpu_workers or 1)]
    if cpu_workers is not None:
        raise UsageError(
            "--workers counts processes that share the CPU", "Add --devices cpu, or leave it out."
        )
    chosen = [device for _, device in found] if wanted == "auto" else list(_named(wanted, found))
    if len({device.visible for device in chosen}) < len(chosen):
        raise UsageError(f"--devices {wanted} names a GPU twice")
    return chosen


def _named(wanted: str, found: list[Place]) -> Iterator[Device]:
    for name in wanted.split(","):
        devices = [device for gpu, device in found if _means(name, gpu, device)]
        if not devices:
            known = ", ".join(device.visible for _, device in found) or "none"
            raise UsageError(
                f"--devices {wanted}: no GPU {name!r}; found: {known}",
                "Use auto, cpu or what `nvidia-smi -L` and CUDA_VISIBLE_DEVICES list.",
            )
        yield from devices


def _means(name: str, gpu: Gpu, device: Device) -> bool:
    """Whether a name stands for a device. A GPU's own name stands for all its slices."""
    if name.startswith(("GPU-", "MIG-")):  # CUDA takes their beginnings as well
        return gpu.uuid.startswith(name) or device.visible.startswith(name)
    return name == (gpu.number if gpu.slices else device.visible)


def _find(wanted: str, machine: Machine) -> list[Place]:
    """The GPUs that may be used, each slice a device. Raises: as choose_devices."""
    build = torch_build()
    gpus, problem = machine.gpus()
    if not gpus and problem:
        raise FatalError(
            f"no GPU can be used: {problem} ({_versions(machine, build)})",
            f"Mend the driver or the container's access to it, or {_ON_THE_CPU}.",
        )
    for other, version in (("ROCm", build.hip), ("XPU", build.xpu)):
        if version:
            raise FatalError(
                f"torch {build.version} is a build for {other}, which imagemill does not support",
                f"Install a CUDA build of torch, or {_ON_THE_CPU}.",
            )
    if gpus and not build.cuda:
        raise FatalError(
            f"this machine has {len(gpus)} GPUs, but torch {build.version} is a build without CUDA",
            f"Install a CUDA build of torch, or {_ON_THE_CPU}.",
        )
    entries = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [(gpu, device) for gpu in gpus for device in _devices(gpu, machine.cores_near(gpu.pci))]
    if entries is None or not gpus:
        return found
    names = [entry.strip() for entry in entries.split(",")]
    allowed = [
        (gpu, device if gpu.slices else replace(device, visible=name))  # as the variable calls it
        for name in names
        for gpu, device in found
        if _means(name, gpu, device)
    ]
    if not allowed and wanted == "auto":
        raise UsageError(
            f"CUDA_VISIBLE_DEVICES={entries} names no GPU of this machine; "
            f"found: {', '.join(gpu.number for gpu in gpus)}",
            f"Correct it, or {_ON_THE_CPU}.",
        )
    return allowed


def _devices(gpu: Gpu, cores: frozenset[int]) -> list[Device]:
    if not gpu.slices:
        return [Device(f"gpu{gpu.number}", gpu.number, cores)]
    return [
        Device(f"gpu{gpu.number}.{number}", name, cores) for number, name in enumerate(gpu.slices)
    ]


def _hides_all(entries: str | None) -> bool:
    return entries is not None and entries.strip() in ("", "-1", "NoDevFiles")


def _versions(machine: Machine, build: TorchBuild) -> str:
    driver = machine.driver() or "unknown"
    return f"driver {driver}; torch {build.version} is built for CUDA {build.cuda or 'none'}"


def tell(wanted: str) -> int:
    """Print the names of the devices as JSON, or why there are none; for `imagemill doctor`."""
    try:
        sys.stdout.write(orjson.dumps([one.name for one in choose_devices(wanted)]).decode())
    except ImagemillError as error:
        sys.stderr.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(tell(sys.argv[1]))
