"""The ledger of a chaos run: what was broken, how often, and what it cost."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sites import Site

FAULTS = Path(__file__).parent / "faults"
SEED = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))


@dataclass
class Ledger:
    """One row of the table. Fails the test if anything is lost or doubled."""

    fault: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    recoveries: list[float] = field(default_factory=list)

    def check(self, site: Site, run_id: str, seeds: list[int]) -> list[dict[str, Any]]:
        """Compare a finished run with what was asked for; returns all its rows."""
        found = site.rows(run_id)
        names = [row["custom_id"] for row in found]
        self.lost += len({f"seed-{seed}" for seed in seeds} - set(names))
        self.doubled += len(names) - len(set(names))
        assert (self.lost, self.doubled) == (0, 0)
        assert len(names) == len(seeds)
        return found

    def recovered(self, since: float) -> None:
        """Work goes on, `since` a monotonic time at which it stopped."""
        self.recoveries.append(time.monotonic() - since)

    def __str__(self) -> str:
        slowest = f"{max(self.recoveries):.1f} s" if self.recoveries else "–"
        return f"| {self.fault} | {self.times} | {self.lost} | {self.doubled} | {slowest} |"


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
