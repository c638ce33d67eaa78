"""The ledger of a chaos run: what was broken, how often, and what it cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tests.sites import Site

ROW = "chaos row"  # the name of the property that takes a row to the end of the report


@dataclass
class Ledger:
    """One row of the table. Fails the test if anything is lost or doubled.

    lost: requests without a record; doubled: records beyond one a request, in all parts of a run,
    of which a dataset takes one.
    """

    fault: str
    times: int = 0
    lost: int = 0
    doubled: int = 0
    recoveries: list[float] = field(default_factory=list)

    def check(self, site: Site, run_id: str, seeds: list[int]) -> list[dict[str, Any]]:
        """Compare a finished run with what was asked for; returns all its rows."""
        records = site.records(run_id)
        self.lost += len(seeds) - len(set(records))
        self.doubled += len(records) - len(set(records))
        assert (self.lost, self.doubled) == (0, 0)
        found = site.rows(run_id)
        assert sorted(row["custom_id"] for row in found) == sorted(f"seed-{one}" for one in seeds)
        return found

    def recovered(self, since: float) -> None:
        """Work goes on, `since` a monotonic time at which it stopped."""
        self.recoveries.append(time.monotonic() - since)

    def __str__(self) -> str:
        slowest = f"{max(self.recoveries):.1f} s" if self.recoveries else "–"
        return f"| {self.fault} | {self.times} | {self.lost} | {self.doubled} | {slowest} |"
