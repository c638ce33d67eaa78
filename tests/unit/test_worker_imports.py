"""Only the process that renders pays for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("worker.__main__", {"torch", "diffusers", "celery", "numpy"}),
        ("worker.process.parent", {"torch", "diffusers"}),
        ("worker.tasks", {"torch", "diffusers"}),
        ("worker.null", {"torch", "diffusers"}),
    ],
)
def test_heavy_libraries_stay_out(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert not forbidden & set(done.stdout.split())
