"""What a device process finds in its environment."""

from __future__ import annotations

import os
import sys

import pytest

from worker.process.devices import Device
from worker.process.environment import environment
from worker.process.supervisor import _Child


def test_memory_is_asked_for_in_blocks_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device("gpu0", "0")
    assert environment(device, 1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:512")
    assert "PYTORCH_ALLOC_CONF" not in environment(device, 1)


def test_workers_of_a_host_share_what_they_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch itself sets it
    device = Device("gpu0", "0")
    assert environment(device, 1)["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere/imagemill/compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    assert "TORCHINDUCTOR_CACHE_DIR" not in environment(device, 1)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = environment(Device("gpu0", "0"), 8)
    assert found["OMP_NUM_THREADS"] == found["TORCHINDUCTOR_COMPILE_THREADS"] == "8"
    assert "MKL_NUM_THREADS" not in found


def test_a_process_is_pinned_with_all_its_threads() -> None:
    core = min(os.sched_getaffinity(0))
    program = "import time; time.sleep(60)"
    command = [sys.executable, "-c", program]
    child = _Child(Device("gpu0", "0", frozenset({core})), command, {})
    child.start()
    try:
        assert child.process
        assert os.sched_getaffinity(child.process.pid) == {core}
    finally:
        child.kill()
