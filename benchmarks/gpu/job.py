"""A whole job beside a bare diffusers loop, and how long the device waited between its batches."""

from __future__ import annotations

import os
from statistics import median

from benchmarks.gpu.sdxl import models, name, sizes
from benchmarks.gpu.step import Day, Notes
from benchmarks.measure import batches, gaps
from benchmarks.throughput import compare as compare_rates

CASES = ((1, 4, 24), (0, 8, 192))  # which size, slots, images


def compare(day: Day, notes: Notes) -> None:
    """`imagemill run` with SDXL, at 1024 x 1024 and at 512 x 512."""
    table = models(day)
    # What a run has measured is kept there; random weights must not estimate anybody's runs.
    os.environ |= {
        "IMAGEMILL_MODELS": str(day.weights / "models.toml"),
        "XDG_CACHE_HOME": str(day.weights / "cache"),
    }
    for which, slots, images in CASES if day.is_real else ((0, 4, 8),):
        size = sizes(day)[which]
        found = compare_rates(table, name(size, slots), images, 1, day.device, script=False)
        spans = batches(found.records)
        waits = gaps(spans)
        busy = sum(end - start for some in spans.values() for start, end in some)
        notes.row(
            "jobs",
            size=size,
            slots=slots,
            images=images,
            job=found.job[0],
            loop=found.loop,
            ratio=found.ratios[0],
            busy=busy / (busy + sum(waits)),
            gap_median=median(waits),
            gap_most=max(waits),
            encode=median(row["seconds_encode"] for row in found.records),
            store=median(row["seconds_store"] for row in found.records),
        )
