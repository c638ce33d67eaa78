"""From the shell to the first image on disk, with a warm file cache.

    python -m benchmarks.first_image [--rounds 5]

Also times the parts alone, each in a process of its own; in the run they overlap.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import report, spread, write_manifest
from jobs.models.table import load_models

_PARTS = {
    "imports of the command": """
import producer.cli
import producer.local.whole
import producer.planning.submission
""",
    "private broker": """
from jobs.settings import load_settings
from producer.local.embedded import Crew, embedded
with embedded(load_settings(), Crew()):
    pass
""",
    "imports of the worker's parent": "import worker.process.parent, celery.apps.worker",
    "imports of the device process": "import torch; from diffusers import StableDiffusionPipeline",
    "model load, imports included": """
import sys, torch
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
""",
}


def first_image(manifest: Path, out: Path) -> float:
    """Seconds until the first image exists; the run is then stopped."""
    command = [sys.executable, "-P", "-m", "producer", "run", str(manifest), "--out", str(out)]
    started = time.perf_counter()
    run = subprocess.Popen([*command, "--quiet"], stderr=subprocess.DEVNULL)
    try:
        while not any(out.glob("images/*/*.jpg")):
            if run.poll() is not None or time.perf_counter() - started > 120:
                raise SystemExit("no image came")
            time.sleep(0.005)
        return time.perf_counter() - started
    finally:
        run.terminate()
        run.wait()


def part(code: str, folder: str) -> float:
    """Seconds of a fresh interpreter that runs `code`."""
    started = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", code, folder]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    table = load_models()
    folder = str(table.source(table.get("shapes")))
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name) / "manifest.jsonl", 64)
        first_image(manifest, Path(name) / "warm")
        times = [first_image(manifest, Path(name) / f"out{i}") for i in range(rounds)]
    lines = [f"first image on disk          {spread(times)} s", "", "parts, each alone:"]
    for title, code in _PARTS.items():
        lines.append(f"  {title:<30} {spread([part(code, folder) for _ in range(3)])} s")
    report("From the shell to the first image", lines)


if __name__ == "__main__":
    main()
