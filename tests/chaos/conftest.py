"""What the chaos tests share; the ledger is printed at the end."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.ledger import ROW, Ledger

FAULTS = Path(__file__).parent / "faults"
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """The test's row, called by the test's docstring."""
    row = Ledger(request.node.function.__doc__.strip().rstrip("."))
    yield row
    # A property of the report: it also reaches the terminal of tests that run side by side.
    request.node.user_properties.append((ROW, str(row)))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random choices that CHAOS_SEED repeats."""
    print(f"CHAOS_SEED={SEED}")  # shown when the test fails
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of workers that can be broken from within (faults/sitecustomize.py)."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS), prepend=os.pathsep)
    return monkeypatch
