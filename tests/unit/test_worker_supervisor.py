"""What a device process finds in its environment."""

from __future__ import annotations

import pytest

from jobs.models.table import load_models
from jobs.settings import Settings
from worker.process.devices import Device
from worker.process.supervisor import Supervisor


def environment(*devices: Device) -> dict[str, str]:
    """Of the first of them."""
    return Supervisor(Settings(), load_models(), [*devices], ["shapes"])._environment(devices[0])


def test_memory_is_asked_for_in_blocks_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("gpu0", "0")
    assert environment(device)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert "PYTORCH_ALLOC_CONF" not in environment(device)
