"""The same manifest in four ways: every image's bytes are equal.

    python -m benchmarks.determinism [--images 256]

File order and shuffled, one worker and two, and with a worker killed by -9 in the middle and the
run resumed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.measure import imagemill, report, rows, write_manifest


def hashes(out: Path) -> dict[str, str]:
    """custom_id → sha256."""
    return {row["custom_id"]: row["sha256"] for row in rows(out)}


def render(manifest: Path, out: Path, workers: int) -> dict[str, str]:
    imagemill("run", str(manifest), "--out", str(out), "--workers", str(workers), "--quiet")
    return hashes(out)


def render_with_a_kill(manifest: Path, out: Path) -> dict[str, str]:
    """Kill everything that renders as soon as some images exist, then run the command again."""
    command = [sys.executable, "-P", "-m", "producer", "run", str(manifest), "--out", str(out)]
    run = subprocess.Popen([*command, "--quiet"], stderr=subprocess.DEVNULL)
    while len(list(out.glob("images/*/*.jpg"))) < 40:
        if run.poll() is not None:
            raise SystemExit("the run ended before it could be disturbed")
        time.sleep(0.01)
    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if _renders(p)]
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    run.send_signal(signal.SIGINT)
    run.wait()
    return render(manifest, out, 1)


def _renders(process: psutil.Process) -> bool:
    return any("spawn" in argument or "worker" in argument for argument in process.cmdline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        manifest = write_manifest(work / "manifest.jsonl", images)
        lines = manifest.read_text().splitlines(keepends=True)
        shuffled = work / "shuffled.jsonl"
        shuffled.write_text("".join(random.Random(1).sample(lines, len(lines))))
        reference = render(manifest, work / "a", 1)
        ways = {
            "shuffled": render(shuffled, work / "b", 1),
            "two workers": render(manifest, work / "c", 2),
            "shuffled, two workers": render(shuffled, work / "d", 2),
            "killed with -9 and resumed": render_with_a_kill(manifest, work / "e"),
        }
    lines = [f"{len(reference)} images in file order with one worker, compared with:"]
    for way, found in ways.items():
        equal = sum(reference[name] == found.get(name) for name in reference)
        lines.append(f"  {way:<28} {equal} of {len(reference)} equal")
    report("Determinism", lines)
    if any(found != reference for found in ways.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
