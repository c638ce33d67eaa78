"""Content credentials at export: what a signature costs an image, in time of one core and in bytes.

    python -m benchmarks.signing [--images 5000] [--side 1024]

The same dataset of JPEGs is exported with and without credentials, by one process each, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.export import make
from benchmarks.measure import report
from tests.certificates import write_pair
from worker.encode import encode

ROUNDS = 3
MANY = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    def picture() -> bytes:
        """About as many bytes as a photograph of its size has: noise over coarse colours."""
        coarse = rng.integers(0, 240, (options.side // 16, options.side // 16, 3), np.uint8)
        fine = rng.integers(0, 12, (options.side, options.side, 3), np.uint8)
        return encode(coarse.repeat(16, 0).repeat(16, 1) + fine, "jpeg")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "out", options.images, picture)
        key, chain, _ = write_pair(folder)
        plain, signed = [], []
        for _ in range(ROUNDS):
            plain.append(export(folder))
            signed.append(export(folder, "--sign", key, "--certificate", chain))
    (seconds, size), (signed_seconds, signed_size) = min(plain), min(signed)
    each = (signed_seconds - seconds) / options.images
    report(
        f"Signing {options.images:,} JPEGs of {options.side} x {options.side}",
        [
            f"{each * 1000:.2f} ms of one core an image, {each * MANY:.0f} s for {MANY:,}",
            f"{(signed_size - size) / options.images:,.0f} bytes an image of "
            f"{size / options.images:,.0f}",
            f"the whole export of {MANY:,}: {signed_seconds / options.images * MANY:.0f} s of one "
            f"core, {seconds / options.images * MANY:.0f} s without credentials",
        ],
    )


def export(folder: Path, *options: str) -> tuple[float, int]:
    """Seconds of CPU that the real command takes, and bytes of its tar files."""
    command = [sys.executable, "-P", "-m", "producer", "export", "out", "to", "--to", "webdataset"]
    child = subprocess.Popen(
        [*command, "--workers", "1", "--json", *options], cwd=folder, stdout=subprocess.PIPE
    )
    json.load(child.stdout)  # type: ignore[arg-type]
    _, _, usage = os.wait4(child.pid, 0)
    size = sum(path.stat().st_size for path in (folder / "to").rglob("*.tar"))
    shutil.rmtree(folder / "to")
    return usage.ru_utime + usage.ru_stime, size


if __name__ == "__main__":
    main()
