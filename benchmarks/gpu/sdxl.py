"""SDXL in its real size: whether bytes repeat, and where the time of a call goes."""

from __future__ import annotations

import time
from hashlib import sha256
from itertools import pairwise
from operator import ne
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.step import Day, Notes, found_by
from benchmarks.real_sizes import REAL, TINY, build_sdxl, random_weights, table_row
from jobs.errors import FatalError
from jobs.models.table import ModelTable, load_models
from jobs.requests import BatchKey, Request
from worker.commands.trials import render_first, render_ways
from worker.inputs import Prepared
from worker.pipelines.load import PipelineRenderer
from worker.pipelines.memory import peak, reset_peak
from worker.pipelines.pixels import to_8_bits
from worker.render import BatchRenderer
from worker.renderers import Renderers

STEPS = 20
WARM_STEPS = 2


def sizes(day: Day) -> tuple[int, int]:
    return (512, 1024) if day.is_real else (64, 128)


def widths(day: Day) -> tuple[int, ...]:
    """The slots of calls, the most last."""
    return (1, 4, 8, 16) if day.is_real else (1, 4)


def name(size: int, slots: int) -> str:
    """Of the row of models.toml."""
    return f"sdxl-{size}-w{slots}"


def models(day: Day) -> ModelTable:
    """The models table of all steps, with its weights, which are built where they are not yet."""
    file = day.weights / "models.toml"
    if not file.exists():
        with random_weights(day.device, dtype(day)):
            build_sdxl(day.weights / "sdxl", REAL if day.is_real else TINY)
        kind = str(dtype(day)).removeprefix("torch.")
        # Tiny ones have nothing to share among threads, which would only wait for each other.
        steps, more = (None, ()) if day.is_real else (WARM_STEPS, ("threads = 1",))
        rows = [
            table_row("sdxl", size, slots, kind, steps, more)
            for size in sizes(day)
            for slots in widths(day)
        ]
        file.write_text("\n".join([f'default = "{name(sizes(day)[1], 1)}"', *rows]))
    return load_models(file)


def dtype(day: Day) -> torch.dtype:
    return torch.bfloat16 if day.device == "cuda" else torch.float32


def key_of(day: Day, size: int, slots: int, steps: int) -> BatchKey:
    model = name(sizes(day)[1], widths(day)[-1])
    return BatchKey("generate", model, "", size, size, steps, 5.0, slots=slots)


def load(day: Day, notes: Notes) -> BatchRenderer:
    started = time.monotonic()
    table = models(day)
    built = time.monotonic()
    renderer = Renderers(table, day.device, 1).get(key_of(day, 0, 0, 0).model)
    notes.tell(seconds_build=built - started, seconds_load=time.monotonic() - built)
    return renderer


def measure(day: Day, notes: Notes) -> None:
    """Each size and number of slots: seconds and memory, then the bytes of all ways."""
    renderer = load(day, notes)
    steps = STEPS if day.is_real else WARM_STEPS
    for size in sizes(day):
        for slots in widths(day):
            facts = {"size": size, "slots": slots}
            try:
                notes.row("calls", **facts, **_times(day, renderer, size, slots, steps))
                first, found = render_ways(renderer, key_of(day, size, slots, WARM_STEPS))
            except (FatalError, MemoryError) as error:
                notes.row("problems", **facts, problem=str(error))
                continue
            different = {way: one.different for way, one in found.ways.items()}
            notes.row(
                "bytes",
                **facts,
                compared=sum(one.compared for one in found.ways.values()),
                different=different,
                # Pictures of one colour would be equal however they are made.
                contrast=float(np.std([*first.values()])),
                sha256=[_digest(first[number]) for number in sorted(first)],
            )
    if any(sum(row["different"].values()) for row in notes.found.get("bytes", ())):
        raise FatalError("bytes differ: see the table bytes")


def repeat(day: Day, notes: Notes) -> None:
    """The same images in another process."""
    before = found_by("sdxl", day, "bytes")
    renderer = load(day, notes)
    for row in before:
        first, _ = render_first(renderer, key_of(day, row["size"], row["slots"], WARM_STEPS))
        now = [_digest(first[number]) for number in sorted(first)]
        different = sum(map(ne, now, row["sha256"]))
        facts = {"size": row["size"], "slots": row["slots"]}
        notes.row("bytes", **facts, compared=len(now), different=different)
    if any(row["different"] for row in notes.found.get("bytes", ())):
        raise FatalError("bytes differ from those of the first process: see the table bytes")


def _times(
    day: Day, renderer: BatchRenderer, size: int, slots: int, steps: int
) -> dict[str, float]:
    """Where the time of one call goes, in seconds, and the most memory that it took, in bytes."""
    pipeline = renderer.renderer
    assert isinstance(pipeline, PipelineRenderer)
    _timed(day, pipeline, size, slots, WARM_STEPS, 0)
    reset_peak()
    return _timed(day, pipeline, size, slots, steps, 1) | {"peak_bytes": peak()}


def _timed(
    day: Day, pipeline: PipelineRenderer, size: int, slots: int, steps: int, turn: int
) -> dict[str, float]:
    marks: list[float] = []

    def mark() -> bool:
        """At the start, after each step, and at the end."""
        if day.device == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return False

    # Prompts that nobody has asked for yet: those of before are not encoded again.
    key = key_of(day, size, slots, steps)
    batch = [prepared(key, n, f"a picture {size} {slots} {turn} {n}") for n in range(slots)]
    mark()
    made = pipeline.draw(batch, mark)
    mark()
    to_8_bits(*made)
    mark()
    step = median(after - before for before, after in pairwise(marks[1:-2]))
    return {
        "step": step,
        "encode": max(0.0, marks[1] - marks[0] - step),  # and all else before the first step
        "decode": marks[-2] - marks[-3],
        "copy": marks[-1] - marks[-2],
        "call": marks[-1] - marks[0],
        "images_per_second": slots / (marks[-1] - marks[0]),
    }


def prepared(key: BatchKey, number: int, prompt: str) -> Prepared:
    """A request of a key; its number is its seed."""
    return Prepared(Request(number, "", key, prompt, "", number, "png", f"{number:032x}"))


def _digest(pixels: NDArray[np.uint8]) -> str:
    return sha256(pixels.tobytes()).hexdigest()[:16]
