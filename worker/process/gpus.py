"""Which GPUs the machine has: asked of the driver's own library, then of nvidia-smi. No torch."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pynvml

log = logging.getLogger(__name__)

_SLICE = re.compile(r"\(UUID: (MIG-[^)]+)\)")
_WHOLE = re.compile(r"GPU (\d+): .*\(UUID: (GPU-[^)]+)\)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU. slices: its MIG instances; pci: its address, "" if unknown."""

    number: str
    uuid: str
    slices: tuple[str, ...] = ()
    pci: str = ""


@dataclass(frozen=True)
class Machine:
    """What the kernel and the driver say about this machine's devices, below a root folder."""

    root: Path = Path("/")

    def gpus(self) -> tuple[list[Gpu], str]:
        """The GPUs that can be used, and the reason why some or all cannot ("" if there is none).

        Where there is no NVIDIA device at all there are neither GPUs nor a reason.
        """
        found, problem = _by_nvml()
        if not found:
            others, another = _by_program()
            found, problem = others, problem or another
        files = sorted(self.root.glob("dev/nvidia[0-9]*"))
        if not found and files:
            problem = problem or "neither the driver's library nor nvidia-smi is to be found"
            problem = f"/{files[0].relative_to(self.root)} cannot be used: {problem}"
        elif not found and not self.driver():
            problem = ""  # a library or a program left over, but no device
        return found, problem

    def driver(self) -> str:
        """The version of the NVIDIA driver that the kernel runs; "" if there is none."""
        try:
            return (self.root / "sys/module/nvidia/version").read_text("utf-8").strip()
        except OSError:
            return ""

    def cores_near(self, pci: str) -> frozenset[int]:
        """The cores beside a PCI device, of those that this process may use; none if unknown."""
        domain, _, rest = pci.lower().partition(":")
        folder = f"{int(domain, 16):04x}:{rest}" if rest else "none"
        try:
            text = (self.root / f"sys/bus/pci/devices/{folder}/local_cpulist").read_text("utf-8")
        except OSError:
            return frozenset()
        return frozenset(_numbers(text)) & os.sched_getaffinity(0)


def _by_nvml() -> tuple[list[Gpu], str]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return [], ""
    except pynvml.NVMLError as error:
        return [], f"NVML says {error}"
    found, problem = [], ""
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            try:
                found.append(_gpu(number))
            except pynvml.NVMLError as error:  # lost, or no permission: the others go on
                problem = f"NVML says {error} of GPU {number}"
                log.warning("GPU %d is left out: NVML says %s", number, error)
    except pynvml.NVMLError as error:
        problem = f"NVML says {error}"
    finally:
        pynvml.nvmlShutdown()
    return found, problem


def memory(visible: str) -> tuple[int, int]:
    """Bytes of a device's memory that are used, by whomever, and all of them.

    visible: its CUDA_VISIBLE_DEVICES. (0, 0) if it is none, or if the driver does not tell.
    """
    if not visible:
        return 0, 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0, 0
    try:
        if visible.startswith(("GPU-", "MIG-")):
            handle = pynvml.nvmlDeviceGetHandleByUUID(visible)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(visible))
        found = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return int(found.used), int(found.total)
    except (pynvml.NVMLError, ValueError):
        return 0, 0
    finally:
        pynvml.nvmlShutdown()


def _gpu(number: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)
    pci = _text(pynvml.nvmlDeviceGetPciInfo(handle).busId)
    return Gpu(str(number), _text(pynvml.nvmlDeviceGetUUID(handle)), tuple(_slices(handle)), pci)


def _slices(handle: object) -> Iterator[str]:
    try:
        places = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except pynvml.NVMLError_NotSupported:
        return
    for place in range(places):
        try:
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_NotSupported):
            continue
        yield _text(pynvml.nvmlDeviceGetUUID(instance))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _by_program() -> tuple[list[Gpu], str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"nvidia-smi: {error}"
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        return [], f"nvidia-smi ended with {done.returncode}: {said}"
    return list(_listed(done.stdout)), ""


def _listed(listing: str) -> Iterator[Gpu]:
    """GPUs and their slices, which nvidia-smi lists below them."""
    for block in re.split(r"^(?=GPU )", listing, flags=re.MULTILINE):
        if whole := _WHOLE.match(block):
            yield Gpu(whole[1], whole[2], tuple(_SLICE.findall(block)))


def _numbers(text: str) -> Iterator[int]:
    """The numbers of a list as the kernel writes it: "0-15,32"."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            yield from range(int(first), int(last or first) + 1)
