"""A finished dataset to shards: images a second, and memory that does not grow with it.

    python -m benchmarks.export [--images 4000] [--bytes 300000]

The images are random bytes, of the size of a 1024² JPEG by default: what they show costs an export
nothing. Each form is written from a quarter of the dataset and from all of it, by one process and
by two; plain copies of the files before and after are the yardstick: they read and write the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from benchmarks.measure import report
from jobs.output import layout
from jobs.output.dataset import Summary, write_summary
from jobs.output.records import encode_part
from jobs.output.storage import open_storage
from tests.samples import make_key, make_record, make_request

FILES = 500  # different ones; the others are links to them
KEY = make_key(width=1024, height=1024)


@dataclass(frozen=True)
class Measured:
    """images a second; peak resident MB of the largest process."""

    rate: float
    memory: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--bytes", type=int, default=300_000)
    options = parser.parse_args()
    few, many = options.images // 4, options.images
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {images: folder / f"out-{images}" for images in (few, many)}
        for images, out in sizes.items():
            make(out, images, partial(random.Random(0).randbytes, options.bytes))
        for form in ("webdataset", "parquet"):
            for images, workers in ((few, 1), (many, 1), (many, 2)):
                before = copy(sizes[images], folder / "copy")
                found = export(sizes[images], folder / "to", form, workers)
                copied = (before + copy(sizes[images], folder / "copy")) / 2
                lines.append(
                    f"{form}, {images} images, {workers} processes: {found.rate:,.0f} images/s, "
                    f"{found.rate / copied:.2f} of a plain copy, peak RSS {found.memory:.0f} MB"
                )
    report(f"Exporting images of {options.bytes:,} bytes", lines)


def make(out: Path, images: int, content: Callable[[], bytes]) -> None:
    """A finished dataset; content: of each file that is another."""
    storage = open_storage(str(out))
    made: list[tuple[str, int]] = []
    (out / "images/00000").mkdir(parents=True)
    with (out / layout.METADATA).open("wb") as metadata:
        for i in range(images):
            prompt = f"a large red circle on a blue background, seen from {i} metres"
            request = make_request(i, KEY, prompt=prompt, format="jpeg")
            path = layout.image(0, request.job_id, "jpeg")
            if i < FILES:
                data = content()
                (out / path).write_bytes(data)
                made.append((sha256(data).hexdigest(), len(data)))
            else:
                os.link(out / layout.image(0, f"{i % FILES:032x}", "jpeg"), out / path)
            digest, size = made[i % FILES]
            record = make_record(request, file_name=path, sha256=digest, bytes=size)
            metadata.write(encode_part([record.row()]))
    write_summary(
        storage,
        Summary(
            run_id="0" * 12,
            state="finished",
            manifest="m",
            seed=0,
            created_at="",
            requests=images,
            done=images,
        ),
    )


def copy(out: Path, to: Path) -> float:
    """Images a second of cp -r's work, flushed to the disk."""
    started = time.perf_counter()
    to.mkdir()
    images = 0
    for path in (out / "images/00000").iterdir():
        shutil.copyfile(path, to / path.name)
        images += 1
    os.sync()
    seconds = time.perf_counter() - started
    shutil.rmtree(to)
    return images / seconds


def export(out: Path, to: Path, form: str, workers: int) -> Measured:
    """The real command, from its start to its end."""
    command = [sys.executable, "-P", "-m", "producer", "export", str(out), str(to), "--to", form]
    command += ["--workers", str(workers), "--shard-size", "100MB", "--json"]
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    outcome = json.load(child.stdout)  # type: ignore[arg-type]
    _, _, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    shutil.rmtree(to)
    # Of the command, or of the largest of its own children, which it has waited for.
    return Measured(outcome["images"] / seconds, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
