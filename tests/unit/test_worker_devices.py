"""Which devices a worker chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import UsageError
from worker.process.devices import Device, choose_devices, find_gpus

LISTING = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb     Device  0: (UUID: MIG-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)"""


@pytest.fixture
def no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{LISTING}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("no_gpus")
def test_without_gpus_auto_is_the_cpu() -> None:
    assert choose_devices("auto") == [Device("cpu0", "")]
    assert [device.name for device in choose_devices("auto", 2)] == ["cpu0", "cpu1"]


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_every_gpu() -> None:
    assert find_gpus() == ["0", "1"]
    assert choose_devices("auto") == [Device("gpu0", "0"), Device("gpu1", "1")]
    assert choose_devices("1")[0].kind == "cuda"
    assert choose_devices("cpu")[0].kind == "cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        ("1", [Device("gpu1", "1")]),
        ("1, 7", [Device("gpu1", "1")]),
        ("GPU-2,GPU-1", [Device("gpu0", "GPU-2"), Device("gpu1", "GPU-1")]),
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
@pytest.mark.parametrize("wanted", ["2", "0,0", "gpu", "", "0, 1"])
def test_a_gpu_that_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(UsageError, match="--devices"):
        choose_devices(wanted)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_never_shared() -> None:
    with pytest.raises(UsageError, match="--workers"):
        choose_devices("auto", 2)


@pytest.mark.usefixtures("no_gpus")
def test_a_driver_that_fails_is_no_gpu(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    assert find_gpus() == []
