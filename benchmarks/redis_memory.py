"""What Redis holds while a run of null images is in flight.

    python -m benchmarks.redis_memory [--lines 100000 1000000] [--seconds 20]

Starts a private Valkey and one worker for each size, submits the manifest, and reads used_memory
and used_memory_peak for `seconds` of rendering; an empty server's memory is shown beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.measure import imagemill, report, write_manifest
from jobs.broker.connection import connect
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.settings import load_settings
from producer.local.embedded import Crew, embedded

_MB = 1 << 20


def in_flight(manifest: Path, out: Path, seconds: float) -> tuple[float, float, int]:
    """(used MB of an empty server, peak MB in flight, images rendered meanwhile)."""
    with embedded(load_settings(), Crew("cpu")) as children:
        client = connect(children.settings)
        empty = client.info("memory")["used_memory"] / _MB
        children.serve(["null"])
        broker = children.settings.broker
        arguments = [str(manifest), "--out", str(out), "--model", "null", "--broker", broker]
        run_id = imagemill("submit", *arguments).stdout.split()[0]
        runs = Runs(client, children.settings.key_prefix, NO_SEAL)
        deadline = time.monotonic() + seconds
        done, peak = 0, 0.0
        while time.monotonic() < deadline:
            progress = runs.progress(run_id)
            assert progress is not None
            done = progress.done
            peak = max(peak, client.info("memory")["used_memory"] / _MB)
            if progress.state == "finished":
                break
            children.check()
            time.sleep(0.05)
        return empty, peak, done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    found = []
    for lines in options.lines:
        with tempfile.TemporaryDirectory() as name:
            manifest = write_manifest(Path(name) / "manifest.jsonl", lines)
            empty, peak, done = in_flight(manifest, Path(name) / "out", options.seconds)
        found.append(f"{lines:>9} lines: peak {peak:.1f} MB (empty {empty:.1f}), {done} rendered")
    report("Redis memory in flight", found)


if __name__ == "__main__":
    main()
