"""A manifest of generation lines, or a table, to its plan in storage.

    python -m benchmarks.planning [--lines 1000000] [--rows json|parquet]

Prints lines/s from the first byte read to the plan's index written, the processor time of all
processes a line, and the peak memory of the planning process and of all its processes together
(PSS: what several share counts once).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread

import psutil

from benchmarks.measure import processor_seconds, report, write_manifest, write_table

SAMPLED = 0.5  # seconds between two looks at the memory
COLUMNS = (("custom_id", "id"), ("prompt", "caption"))
KEPT = ("label",)


def main() -> None:
    # Here, as the command line has it: processes that plan import this module too.
    from jobs.models.table import load_models
    from producer.planning.resolution import PlanOptions
    from producer.planning.submission import Job, identify, prepare

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rows", choices=("json", "parquet"), default="json")
    given = parser.parse_args()
    lines: int = given.lines
    with tempfile.TemporaryDirectory() as name:
        manifest = Path(name) / f"manifest.{given.rows}"
        options = PlanOptions(model="null")
        write: Callable[[Path, int], Path] = write_manifest
        if given.rows == "parquet":
            options, write = replace(options, columns=COLUMNS, keep=KEPT), write_table
        writer = get_context("spawn").Process(target=write, args=(manifest, lines))
        writer.start()  # whose memory is not to be measured
        writer.join()
        job = Job(str(manifest), f"{name}/out", load_models(), options)
        before = processor_seconds()
        with _peak_memory() as peak:
            started = time.perf_counter()
            plan = prepare(identify(job))
            seconds = time.perf_counter() - started
    assert plan.requests == lines
    spent = processor_seconds() - before
    report(
        f"Planning {lines} {'rows of Parquet' if given.rows == 'parquet' else 'lines'}",
        [
            f"{lines / seconds:,.0f} lines/s ({seconds:.1f} s)",
            f"{spent / lines * 1e6:.2f} µs of a core a line",
            f"peak memory {max(own for own, _ in peak) >> 20} MB, of all processes "
            f"{max(whole for _, whole in peak) >> 20} MB",
        ],
    )


@contextmanager
def _peak_memory() -> Iterator[list[tuple[int, int]]]:
    """The bytes that this process holds, and with its children, every SAMPLED seconds."""
    found, ended = list[tuple[int, int]](), Event()

    def watch() -> None:
        this = psutil.Process()
        while not ended.wait(SAMPLED):
            own = this.memory_full_info().pss
            pss = own
            for process in this.children(recursive=True):
                with suppress(psutil.Error):  # it has ended
                    pss += process.memory_full_info().pss
            found.append((own, pss))

    thread = Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
