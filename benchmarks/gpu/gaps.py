"""When the device does nothing while batches are rendered one after the other, by a profile."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch.profiler import DeviceType, ProfilerActivity
from torch.profiler import profile as profiler

from benchmarks.gpu.sdxl import WARM_STEPS, key_of, load, prepared, sizes, widths
from benchmarks.gpu.step import Day, Notes

BATCHES = 3
STEPS = 4
SLOTS = 8
IDLE = 20.0  # microseconds without a kernel that count as a gap

Span = tuple[float, float]  # start and end, in microseconds


def profile(day: Day, notes: Notes) -> None:
    """Batches of SDXL in full calls: the share of time that kernels run, and the longest gaps.

    On the CPU its operations stand for kernels.
    """
    renderer = load(day, notes)
    device = DeviceType.CUDA if day.device == "cuda" else DeviceType.CPU
    activity = ProfilerActivity.CUDA if day.device == "cuda" else ProfilerActivity.CPU
    slots = min(SLOTS, widths(day)[-1])
    steps = STEPS if day.is_real else WARM_STEPS
    for size in sizes(day):
        key = key_of(day, size, slots, steps)
        numbers = [range(slots * turn, slots * turn + slots) for turn in range(BATCHES + 1)]
        batches = [
            [prepared(key, n, f"a large red circle, number {n}") for n in some] for some in numbers
        ]
        renderer.render([*batches.pop()])
        with profiler(activities=[activity]) as found:
            for batch in batches:
                renderer.render([*batch])
        spans = merged(
            (event.time_range.start, event.time_range.end)
            for event in found.events()
            if event.device_type == device
        )
        waits = sorted((after[0] - before[1] for before, after in pairwise(spans)), reverse=True)
        whole = spans[-1][1] - spans[0][0]
        notes.row(
            "profiles",
            size=size,
            slots=slots,
            batches=BATCHES,
            steps=steps,
            seconds=whole / 1e6,
            busy=sum(end - start for start, end in spans) / whole,
            gaps=sum(wait > IDLE for wait in waits),
            longest_milliseconds=[round(wait / 1e3, 3) for wait in waits[:10]],
        )


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order, which cover the same time."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found
