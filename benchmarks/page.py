"""What the page costs with a run of a million images: time, bytes, memory; and on storage far away.

    python -m benchmarks.page [--lines 1000000] [--pages 400] [--far 50000]

Plans a manifest, writes the records that workers would have written (all of which share a few
pictures), starts a private Valkey and a facade, opens the run's page as a browser does, and then
pages of its gallery from all over the run. The pictures are clouds with some grain. Then some pages
of a smaller run in an S3 server 50 ms away, whose parts have 32 records each, as those of a model
that takes a second an image. The first pages of its site without a server are opened from the disk,
by Chromium if `make browser` has been run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

import httpx
import psutil
from PIL import Image

from benchmarks.idle import ACCESS, far, s3_server
from benchmarks.measure import report, spread, write_manifest
from jobs.broker.connection import connect
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import write_dataset
from jobs.output.plan import SHARD_LINES, Plan, read_shard
from jobs.output.records import Row, encode_part
from jobs.output.storage import Storage, open_storage
from jobs.settings import load_settings
from producer.api.page.gallery import PAGE_ROWS
from producer.local.embedded import Crew, Embedded, embedded
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from producer.upkeep.site import write_site
from tests.samples import make_record

_MB = 1 << 20
PICTURES = 64  # files that all records share
FAR_ROWS = 32  # of a part that lies far away
SITE_PICTURES = 4800
BROWSER_CONNECTIONS = 6  # at a time, to one host
SIDE = 512


def write_run(folder: Path, lines: int, part: int = SHARD_LINES) -> tuple[Storage, Plan]:
    """A run of null images, all of them on record. part: rows of each part."""
    manifest = write_manifest(folder / "manifest.jsonl", lines)
    job = Job(str(manifest), str(folder / "out"), load_models(), PlanOptions(model="null"))
    plan = prepare(identify(job))
    storage = open_storage(job.out)
    names = [layout.image(0, f"{number:032x}", "jpeg") for number in range(PICTURES)]
    for number, name in enumerate(names):
        file = BytesIO()
        coarse = Image.effect_noise((SIDE // 16, SIDE // 16), 60 + number).resize((SIDE, SIDE))
        noise = Image.blend(coarse, Image.effect_noise((SIDE, SIDE), 20), 0.1)
        Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))).save(file, "JPEG")
        storage.write(name, file.getvalue(), durable=False)
    for number in range(len(plan.shards)):
        requests = read_shard(storage, plan.run_id, number)
        record = make_record(requests[0], sha256="0" * 64, bytes=1).row()
        rows: list[Row] = [
            record
            | {
                "file_name": names[one.index % PICTURES],
                "custom_id": one.custom_id,
                "index": one.index,
                "job_id": one.job_id,
                "prompt": one.prompt,
                "seed": str(one.seed),
            }
            for one in requests
        ]
        for first in range(0, len(rows), part):
            path = layout.done_part(plan.run_id, number, first // part)
            storage.write(path, encode_part(rows[first : first + part]), durable=False)
    return storage, plan


def open_as_a_browser_does(client: httpx.Client, path: str) -> tuple[float, float, int]:
    """(seconds until the page is there, until all that it shows is there, bytes of all that)."""
    started = time.perf_counter()
    page = client.get(path)
    page.raise_for_status()
    there = time.perf_counter() - started
    links = {urljoin(path, link) for link in re.findall(r'(?:src|href)="([^"#]+)"', page.text)}
    links = {link for link in links if re.search(r"/page/|/thumbnails/", link)}
    with ThreadPoolExecutor(BROWSER_CONNECTIONS) as pool:
        parts = list(pool.map(client.get, links))
    size = sum(part.num_bytes_downloaded for part in (page, *parts))
    return there, time.perf_counter() - started, size


@contextmanager
def facade(children: Embedded, store: Path) -> Iterator[tuple[httpx.Client, int]]:
    """A facade beside the broker, as (a client of it, its process)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "producer", "serve", "--port", str(port), "--store", str(store)],
        env=os.environ | children.settings.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.get("/healthz").raise_for_status()
                    break
                except httpx.TransportError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--far", type=int, default=50_000)
    options = parser.parse_args()
    with embedded(load_settings(), Crew("cpu")) as children:
        runs = Runs(connect(children.settings), children.settings.key_prefix, NO_SEAL)
        with tempfile.TemporaryDirectory() as name:
            storage, plan = write_run(Path(name), options.lines)
            runs.open(plan, storage.uri, [])
            runs.finish(plan.run_id, options.lines, 0)
            with facade(children, Path(name)) as (client, pid):
                lines = measure(client, pid, plan, options.pages)
            lines += measure_site(storage, plan)
        report(f"The page, a run of {options.lines} images", lines)
        with tempfile.TemporaryDirectory() as name, far_run(Path(name), options.far) as (uri, plan):
            runs.open(plan, uri, [])
            runs.finish(plan.run_id, options.far, 0)
            with facade(children, Path(name)) as (client, _):
                lines = measure_far(client, plan)
        report(f"The page, a run of {options.far} images 50 ms away", lines)


def measure(client: httpx.Client, pid: int, plan: Plan, pages: int) -> list[str]:
    path, process = f"/runs/{plan.run_id}", psutil.Process(pid)
    first, shown, size = open_as_a_browser_does(client, path)
    found = [f"first: there in {first:.2f} s, with its pictures in {shown:.2f} s, {size:,} bytes"]
    seconds, memory = list[float](), list[float]()
    for number in range(pages):
        at = number * 7919 * 48 % plan.requests
        there, _, _ = open_as_a_browser_does(client, f"{path}?after={at}")
        seconds.append(there)
        memory.append(process.memory_info().rss / _MB)
    half = len(memory) // 2
    found.append(f"{pages} pages from all over: {spread(seconds)} s")
    found.append(f"memory: {memory[0]:.0f} MB, then {memory[half]:.0f}, then {memory[-1]:.0f}")
    return found


def measure_site(storage: Storage, plan: Plan) -> list[str]:
    write_dataset(storage, plan)
    started = time.perf_counter()
    site = write_site(storage.uri, lambda *_: None, SITE_PICTURES)
    seconds = time.perf_counter() - started
    files = ("index.html", "sprites/00001.webp", "files/page.css", "files/page.js")
    sizes = storage.sizes("page")
    shown = sum(sizes[f"page/{name}"] for name in files)
    return [
        f"a site of the first {site.images}: {site.images / seconds:.0f} images/s are written",
        f"its first page: {shown:,} bytes, {open_in_chromium(site.index)}",
    ]


def open_in_chromium(path: str) -> str:
    """How long it takes until all of a page is shown, as words."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "not opened"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto("about:blank")  # that it has started is not the page's doing
        started = time.perf_counter()
        page.goto(f"file://{path}", wait_until="load")
        seconds = time.perf_counter() - started
        browser.close()
    return f"shown in {seconds:.2f} s"


@contextmanager
def far_run(folder: Path, lines: int) -> Iterator[tuple[str, Plan]]:
    """A run in an S3 server 50 ms away, as (where it lies, its plan)."""
    _, plan = write_run(folder, lines, FAR_ROWS)
    (folder / "s3/bench").mkdir(parents=True)
    (folder / "out").rename(folder / "s3/bench/out")
    with s3_server(folder / "s3") as port, far(port, 0.05) as endpoint:
        os.environ.update(ACCESS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{endpoint}"})
        yield "s3://bench/out", plan


def measure_far(client: httpx.Client, plan: Plan) -> list[str]:
    path = f"/runs/{plan.run_id}"
    found = list[str]()
    for what, query in (
        ("first", ""),
        ("again", ""),
        ("the next", f"?after={PAGE_ROWS}"),
        ("one in the middle", f"?after={plan.requests // 2}"),
    ):
        there, shown, _ = open_as_a_browser_does(client, path + query)
        found.append(f"{what}: there in {there:.2f} s, with its pictures in {shown:.2f} s")
    return found


if __name__ == "__main__":
    main()
