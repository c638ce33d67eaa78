"""What the benchmarks share: manifests, runs of the real command line, and honest statistics."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "grey", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
GROUP_ROWS = 100_000  # of a Parquet file


def write_manifest(path: Path, lines: int, seeded: bool = False) -> Path:
    """A manifest of generation lines, each with a custom_id and a prompt. seeded: and a seed."""
    with path.open("w") as file:
        for i in range(lines):
            seed = f', "seed": {i}' if seeded else ""
            file.write(f'{{"custom_id": "row-{i:07d}", "prompt": "{_prompt(i)}"{seed}}}\n')
    return path


def write_table(path: Path, rows: int) -> Path:
    """The same as a Parquet table, with two columns more."""
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string()
    types = {"id": text, "caption": text, "label": pa.int64(), "url": text}
    with parquet.ParquetWriter(path, pa.schema(types)) as writer:
        for start in range(0, rows, GROUP_ROWS):
            some = range(start, min(start + GROUP_ROWS, rows))
            columns = {
                "id": [f"row-{i:07d}" for i in some],
                "caption": [_prompt(i) for i in some],
                "label": [i % 1000 for i in some],
                "url": [f"https://example.org/{i}.jpg" for i in some],
            }
            writer.write_table(pa.table(columns, pa.schema(types)))
    return path


def _prompt(i: int) -> str:
    colour, shape = COLOURS[i % len(COLOURS)], SHAPES[i // len(COLOURS) % len(SHAPES)]
    return f"a large {colour} {shape} on a blue background"


def imagemill(*arguments: str, timeout: float = 3600) -> subprocess.CompletedProcess[str]:
    """Run the real command line; its errors end the benchmark."""
    command = [sys.executable, "-P", "-m", "producer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done


def rows(out: Path) -> list[dict[str, Any]]:
    """The dataset's metadata."""
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def rate(records: Sequence[dict[str, Any]], width: int) -> float:
    """Images a second from the first to the last record; the first batch only starts the clock."""
    times = sorted(datetime.fromisoformat(row["created_at"]) for row in records)
    return (len(times) - width) / (times[-1] - times[width - 1]).total_seconds()


Spans = dict[str, list[tuple[float, float]]]  # device → (start, end) of its batches, in seconds


def batches(rows: Iterable[Mapping[str, Any]]) -> Spans:
    """The pipeline calls of each device, in order, by the records of what they made."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        spent = row["seconds_render"] * row["batch_images"]
        found.setdefault(row["worker"], {})[row["batch_started"]] = row["batch_started"] + spent
    return {worker: sorted(some.items()) for worker, some in found.items()}


def gaps(devices: Spans) -> list[float]:
    """Seconds between two batches of one device."""
    return [two[0] - one[1] for some in devices.values() for one, two in pairwise(some)]


def processor_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usages)


def hardware() -> str:
    """The processor and how many cores of it are at hand."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    name = names[0].split(":", 1)[1].strip() if names else platform.processor()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


def report(title: str, lines: Iterable[str]) -> None:
    print(f"## {title}\n{hardware()}\n")
    for line in lines:
        print(line)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
