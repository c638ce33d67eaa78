"""Running a finished run of null images again.

python -m benchmarks.rerun [--lines 100000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks.measure import imagemill, report, write_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    lines = parser.parse_args().lines
    with tempfile.TemporaryDirectory() as name:
        manifest = write_manifest(Path(name) / "manifest.jsonl", lines)
        command = ["run", str(manifest), "--out", f"{name}/out", "--model", "null", "--json"]
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            outcome = json.loads(imagemill(*command).stdout)
            seconds.append(time.perf_counter() - started)
    assert (outcome["summary"]["done"], outcome["rendered"]) == (lines, False), outcome
    report(
        f"A finished run of {lines} lines again",
        [f"first {seconds[0]:.1f} s, again {seconds[1]:.2f} s, nothing rendered"],
    )


if __name__ == "__main__":
    main()
