"""Which devices a worker chooses, on machines that the driver's library or nvidia-smi describe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from jobs.errors import FatalError, UsageError
from worker.process import devices
from worker.process.devices import Device, choose_devices
from worker.process.gpus import Gpu, Machine, memory
from worker.versions import TorchBuild

LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)"""
SLICED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-a)
  MIG 1g.10gb     Device  1: (UUID: MIG-b)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)"""


@dataclass
class Nvml:
    """The driver's library, as pynvml speaks to it. A GPU without a UUID is lost."""

    gpus: list[Gpu] = field(default_factory=list)
    fault: type[pynvml.NVMLError] | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self) -> None:
        if self.fault:
            raise self.fault

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Gpu:
        if not self.gpus[number].uuid:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[number]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Gpu:
        found = [gpu for gpu in self.gpus if uuid in (gpu.uuid, *gpu.slices)]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return found[0]

    def nvmlDeviceGetMemoryInfo(self, handle: Gpu) -> object:
        return SimpleNamespace(used=int(handle.number) + 1, total=100)

    def nvmlDeviceGetUUID(self, handle: Gpu | str) -> str:
        return handle if isinstance(handle, str) else handle.uuid

    def nvmlDeviceGetPciInfo(self, handle: Gpu) -> object:
        info = pynvml.nvmlPciInfo_t()
        info.busId = handle.pci.encode()
        return info

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Gpu) -> int:
        if not handle.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Gpu, place: int) -> str:
        if place >= len(handle.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle.slices[place]


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the driver's library or program, with a torch for CUDA."""
    Nvml(fault=pynvml.NVMLError_LibraryNotFound).install(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild("2.13.0+cu130", "13.0"))


def program(folder: Path, script: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture(params=["nvml", "nvidia-smi"])
def two_gpus(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.param == "nvml":
        Nvml([Gpu("0", "GPU-1"), Gpu("1", "GPU-2")]).install(monkeypatch)
    else:
        program(tmp_path, f"echo '{LISTING}'")


@pytest.fixture(params=["nvml", "nvidia-smi"])
def sliced(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "nvml":
        Nvml([Gpu("0", "GPU-1", ("MIG-a", "MIG-b")), Gpu("1", "GPU-2")]).install(monkeypatch)
    else:
        program(tmp_path, f"echo '{SLICED}'")


def machine(root: Path, driver: str = "550.54.15") -> Machine:
    """One with two NVIDIA devices, as the kernel sees them."""
    (root / "dev").mkdir()
    (root / "dev/nvidia0").touch()
    (root / "sys/module/nvidia").mkdir(parents=True)
    (root / "sys/module/nvidia/version").write_text(f"{driver}\n")
    return Machine(root)


def test_without_gpus_auto_is_the_cpu(tmp_path: Path) -> None:
    nowhere = Machine(tmp_path)
    assert choose_devices("auto", machine=nowhere) == [Device("cpu0", "")]
    assert [one.name for one in choose_devices("auto", 2, nowhere)] == ["cpu0", "cpu1"]


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_every_gpu() -> None:
    assert choose_devices("auto") == [Device("gpu0", "0"), Device("gpu1", "1")]
    assert choose_devices("1")[0].kind == "cuda"
    assert choose_devices("cpu")[0].kind == "cpu"
    assert choose_devices("GPU-2") == [Device("gpu1", "1")]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        ("1", [Device("gpu1", "1")]),
        ("1, 7", [Device("gpu1", "1")]),
        ("GPU-2,GPU-1", [Device("gpu1", "GPU-2"), Device("gpu0", "GPU-1")]),
        ("", [Device("cpu0", "")]),
        ("-1", [Device("cpu0", "")]),
    ],
)
def test_only_what_is_visible_is_used(
    allowed: str, found: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert choose_devices("auto") == found
    with pytest.raises(UsageError, match="no GPU '0'"):
        choose_devices("0")


@pytest.mark.usefixtures("two_gpus")
def test_a_variable_that_names_no_gpu_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=7 names no GPU"):
        choose_devices("auto")


A, B, WHOLE = Device("gpu0.0", "MIG-a"), Device("gpu0.1", "MIG-b"), Device("gpu1", "1")


@pytest.mark.usefixtures("sliced")
def test_each_slice_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_devices("auto") == [A, B, WHOLE]
    assert choose_devices("0") == choose_devices("GPU-1") == [A, B]
    assert choose_devices("MIG-b,1") == [B, WHOLE]
    for allowed, found in {"0": [A, B], "MIG-b": [B], "1,MIG-a": [WHOLE, A]}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
        assert choose_devices("auto") == found


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("wanted", ["2", "0,0", "0,GPU-1", "gpu", "", "0, 1"])
def test_a_gpu_that_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="--devices"):
        choose_devices(wanted)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_never_shared() -> None:
    with pytest.raises(UsageError, match="--workers"):
        choose_devices("auto", 2)


# --- Never silently on the CPU ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "script", "reason"),
    [
        (pynvml.NVMLError_LibraryNotFound, "", "neither the driver's library nor nvidia-smi"),
        (pynvml.NVMLError_DriverNotLoaded, "", "NVML says Driver Not Loaded"),
        (pynvml.NVMLError_LibRmVersionMismatch, "", "NVML says RM has detected"),
        (
            pynvml.NVMLError_LibraryNotFound,
            "echo Unable to determine the device handle >&2; exit 15",
            "nvidia-smi ended with 15: Unable to determine",
        ),
        (None, "", "cannot be used"),
    ],
)
def test_a_driver_that_fails_is_no_cpu(
    fault: type[pynvml.NVMLError] | None,
    script: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Nvml(fault=fault).install(monkeypatch)
    if script:
        program(tmp_path, script)
    broken = machine(tmp_path)
    with pytest.raises(FatalError, match=reason) as caught:
        choose_devices("auto", machine=broken)
    assert "driver 550.54.15" in str(caught.value)
    assert "torch 2.13.0+cu130 is built for CUDA 13.0" in str(caught.value)
    assert "--devices cpu" in caught.value.hint
    assert choose_devices("cpu", machine=broken) == [Device("cpu0", "")]


def test_a_program_without_any_device_is_no_gpu(tmp_path: Path) -> None:
    program(tmp_path, "exit 9")
    assert choose_devices("auto", machine=Machine(tmp_path)) == [Device("cpu0", "")]


def test_one_lost_gpu_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    Nvml([Gpu("0", "GPU-1"), Gpu("1", ""), Gpu("2", "GPU-3")]).install(monkeypatch)
    assert [device.visible for device in choose_devices("auto")] == ["0", "2"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (TorchBuild("2.13.0+cpu"), "has 2 GPUs, but torch 2.13.0.cpu is a build without CUDA"),
        (TorchBuild("2.13.0+rocm7.0", hip="7.0"), "a build for ROCm"),
        (TorchBuild("2.13.0+xpu", xpu="20250302"), "a build for XPU"),
    ],
)
def test_a_torch_that_cannot_use_gpus_is_named(
    build: TorchBuild, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "torch_build", lambda: build)
    with pytest.raises(FatalError, match=reason):
        choose_devices("auto")
    assert choose_devices("cpu")


# --- Cores ------------------------------------------------------------------------------------


def test_a_process_runs_near_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 5, 9})
    Nvml([Gpu("0", "GPU-1", pci="00000000:C1:00.0"), Gpu("1", "GPU-2")]).install(monkeypatch)
    folder = tmp_path / "sys/bus/pci/devices/0000:c1:00.0"
    folder.mkdir(parents=True)
    (folder / "local_cpulist").write_text("1-3,5\n")
    first, second = choose_devices("auto", machine=Machine(tmp_path))
    assert first == Device("gpu0", "0", frozenset({1, 2, 5}))
    assert second.cores == frozenset()


def test_a_device_s_memory_is_asked_for_as_cuda_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory("0") == (0, 0)  # no driver
    gpus = [Gpu("0", "GPU-1"), Gpu("1", "GPU-2", ("MIG-a",)), Gpu("2", "")]
    Nvml(gpus).install(monkeypatch)
    assert [memory(one) for one in ("0", "GPU-2", "MIG-a")] == [(1, 100), (2, 100), (2, 100)]
    # The CPU, one that is lost, one that is none, and two.
    assert [memory(one) for one in ("", "2", "GPU-9", "0,1")] == [(0, 0)] * 4
