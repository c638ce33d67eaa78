"""A manifest of generation lines to its plan in storage.

    python -m benchmarks.planning [--lines 1000000]

Prints lines/s from the first byte read to the plan's index written, the processor time of all
processes a line, and the peak resident memory of the planning process and of its largest child.
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
        started, before = time.perf_counter(), time.process_time()
        plan = prepare(identify(job), lambda _: None)
        seconds = time.perf_counter() - started
    assert plan.requests == lines
    own, child = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    spent = sum(one.ru_utime + one.ru_stime for one in (own, child)) - before
    report(
        f"Planning {lines} lines",
        [
            f"{lines / seconds:,.0f} lines/s ({seconds:.1f} s)",
            f"{spent / lines * 1e6:.2f} µs of a core a line",
            f"peak RSS {own.ru_maxrss >> 10} MB, largest child {child.ru_maxrss >> 10} MB",
        ],
    )


if __name__ == "__main__":
    main()
