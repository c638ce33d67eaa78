"""A manifest of generation lines to its plan in storage.

    python -m benchmarks.planning [--lines 1000000]

Prints lines/s from the first byte read to the plan's index written, and the peak resident memory of
the planning process and of its largest child.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.measure import report, write_manifest
from jobs.models.table import load_models
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name) / "manifest.jsonl", lines)
        job = Job(str(manifest), f"{name}/out", load_models(), PlanOptions(model="null"))
        started = time.perf_counter()
        plan = prepare(identify(job), lambda _: None)
        seconds = time.perf_counter() - started
    assert plan.requests == lines
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    report(
        f"Planning {lines} lines",
        [
            f"{lines / seconds:,.0f} lines/s ({seconds:.1f} s)",
            f"peak RSS {own:.0f} MB, largest child {child:.0f} MB",
        ],
    )


if __name__ == "__main__":
    main()
