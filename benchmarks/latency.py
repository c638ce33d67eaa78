"""What a sync call costs beyond its rendering, on an idle worker and under a bulk run.

    python -m benchmarks.latency [--calls 200] [--model shapes]

The pipeline's own time is that of a process that does nothing else, with the same slots, threads,
steps and environment. It and the calls take turns: a machine's good and bad minutes are those of
both. overhead: the whole HTTP call less the rendering as the worker measured it (Server-Timing).
wait under bulk: the call less its own rendering; beside it a denoising step of the batches under
way, which is what a call waits for, from their records.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from benchmarks.measure import report
from jobs.models.table import Model, load_models
from jobs.output.records import read_part
from jobs.output.storage import open_storage
from worker.process.devices import Device
from worker.process.environment import environment

GENERATE = "/v1/images/generations"
BULK_IMAGES = 4096

_IN_PROCESS = """
import sys, time
import torch
from diffusers import DiffusionPipeline

folder, width, threads, steps, guidance = sys.argv[1:]
torch.set_num_threads(int(threads))
pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
width = int(width)
for i, _ in enumerate(sys.stdin):
    started = time.perf_counter()
    pipeline(
        prompt=["a red circle"] * width,
        num_inference_steps=int(steps),
        guidance_scale=float(guidance),
        width=64,
        height=64,
        generator=[torch.Generator("cpu").manual_seed(i)] * width,
        output_type="np",
    )
    print(time.perf_counter() - started, flush=True)
"""


@contextmanager
def facade(folder: Path, model: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to `imagemill up` of its own."""
    log = folder / "up.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "producer", "up", "--port", "0",
                "--store", str(folder / "store"), "--models", model,
            ],
            stderr=file,
            env=os.environ
            | {
                "IMAGEMILL_KEYS_FILE": str(folder / "keys.json"),
                "IMAGEMILL_SIGNING_FILE": str(folder / "signing.key"),
                "IMAGEMILL_TEAM_RATE": "1000000/minute",
            },
        )  # fmt: skip
    try:
        while not (found := re.search(r"http://([\d.]+):(\d+)", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        yield http.client.HTTPConnection(found[1], int(found[2]), timeout=120)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def call(line: http.client.HTTPConnection, body: dict[str, object]) -> tuple[float, float]:
    """Seconds of a whole call, and of its rendering, as the worker measured it."""
    started = time.perf_counter()
    line.request("POST", GENERATE, json.dumps(body), {"Content-Type": "application/json"})
    answer = line.getresponse()
    answer.read()
    seconds = time.perf_counter() - started
    if answer.status != 200:
        raise SystemExit(f"status {answer.status}")
    [render] = re.findall(r"render;dur=([\d.]+)", answer.headers["Server-Timing"])
    return seconds, float(render) / 1000


def start_bulk(line: http.client.HTTPConnection, model: str) -> None:
    """A batch that keeps the worker busy for the rest of the benchmark."""
    lines = [
        {
            "custom_id": str(i),
            "method": "POST",
            "url": GENERATE,
            "body": {"prompt": f"a blue star {i}", "model": model},
        }
        for i in range(BULK_IMAGES)
    ]
    form = b"--B\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n"
    content = "\n".join(map(json.dumps, lines)).encode()
    body = form % (b'"purpose"', b"batch") + form % (b'"file"; filename="a"', content) + b"--B--"
    api = "/openai/v1"
    line.request("POST", f"{api}/files", body, {"Content-Type": "multipart/form-data; boundary=B"})
    file = json.load(line.getresponse())["id"]
    asked = {"input_file_id": file, "endpoint": GENERATE, "completion_window": "24h"}
    headers = {"Content-Type": "application/json"}
    line.request("POST", f"{api}/batches", json.dumps(asked), headers)
    batch = json.load(line.getresponse())["id"]
    while True:
        line.request("GET", f"{api}/batches/{batch}")
        if json.load(line.getresponse())["request_counts"]["completed"]:
            return
        time.sleep(0.2)


def batch_seconds(folder: Path) -> list[float]:
    """Rendering of each batch in the parts of all runs below a folder."""
    found: dict[float, float] = {}
    for path in folder.glob("**/_run/*/parts/*"):
        for row in read_part(open_storage(str(path.parent)), path.name):
            found[row["batch_started"]] = row["seconds_render"] * row["batch_images"]
    return list(found.values())


@contextmanager
def in_process(folder: Path, model: Model, width: int) -> Iterator[Callable[[], float]]:
    """Makes a pipeline call in a process of its own, and tells its seconds."""
    arguments = [folder, width, model.threads, model.steps, model.guidance_scale]
    with subprocess.Popen(
        [sys.executable, "-c", _IN_PROCESS, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment(Device("cpu0", ""), 1),
    ) as process:
        asked, told = process.stdin, process.stdout
        assert asked
        assert told

        def render() -> float:
            print(file=asked, flush=True)
            return float(told.readline())

        yield render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--model", default="shapes")
    options = parser.parse_args()
    table = load_models()
    model = table.get(options.model)
    body = {
        "prompt": "a red circle",
        "model": options.model,
        "num_inference_steps": model.steps,
        "guidance_scale": model.guidance_scale,
    }
    source = table.source(model)
    if not isinstance(source, Path):
        raise SystemExit(f"{options.model}: give a model whose repo is a folder")
    slots = min(model.call_slots)
    with tempfile.TemporaryDirectory() as name, facade(Path(name), options.model) as line:
        with in_process(source, model, slots) as render:
            for _ in range(10):  # warm
                render(), call(line, body)
            turns = [(render(), *call(line, body)) for _ in range(options.calls)]
        start_bulk(line, options.model)
        busy = [call(line, body) for _ in range(options.calls // 4)]
        while not (seconds := batch_seconds(Path(name))):  # until the first chunk ends
            time.sleep(0.5)
        step = 1000 * median(seconds) / model.steps
    overhead = [1000 * (whole - rendering) for _, whole, rendering in turns]
    alone, whole, rendering = map(median, zip(*turns, strict=True))
    waits = [1000 * (whole - render) for whole, render in busy]
    report(
        f"Latency of sync calls, {options.model}, {slots} slots; bulk in {model.batch_width}",
        [
            f"pipeline in process      {1000 * alone:.1f} ms",
            f"call, idle worker        {1000 * whole:.1f} ms, {whole / alone:.2f} of the pipeline; "
            f"its rendering {1000 * rendering:.1f} ms",
            f"overhead, idle worker    p50 {median(overhead):.1f}, p99 {_at(overhead, 99):.1f} ms",
            f"step of a bulk batch     {step:.1f} ms",
            f"wait under bulk          p50 {median(waits):.1f} ms, p95 {_at(waits, 95):.1f} ms, "
            f"{_at(waits, 95) - step:.1f} ms above a step",
        ],
    )


def _at(values: list[float], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1]


if __name__ == "__main__":
    main()
