"""What the chaos tests share; the ledger is printed at the end."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.ledger import Ledger

FAULTS = Path(__file__).parent / "faults"
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))


TABLE: list[Ledger] = []


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """The test's row, called by the test's docstring."""
    row = Ledger(request.node.function.__doc__.strip().rstrip("."))
    yield row
    TABLE.append(row)


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random choices that CHAOS_SEED repeats."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of workers that can be broken from within (faults/sitecustomize.py)."""
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    return monkeypatch


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if TABLE:
        write = terminalreporter.write_line
        write(f"\nCHAOS_SEED={SEED}")
        write("| broken | times | lost | doubled | slowest recovery |\n|---|---|---|---|---|")
        for row in TABLE:
            write(str(row))
