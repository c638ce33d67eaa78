"""Many sync callers at once: how many calls are served, how evenly, and what memory it takes.

    python -m benchmarks.callers [--callers 64] [--seconds 20] [--model null]

Each caller has a connection of its own and sends its next call when the last one is answered.
evenly: calls of the caller who got the fewest, over those of the one who got the most.
"""

from __future__ import annotations

import argparse
import http.client
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles

import psutil

from benchmarks.latency import call, facade
from benchmarks.measure import report


def keep_calling(line: http.client.HTTPConnection, model: str, until: float) -> list[float]:
    """Seconds of each call that one caller makes until a moment."""
    mine = http.client.HTTPConnection(line.host, line.port, timeout=120)
    seconds = []
    while time.monotonic() < until:
        seconds.append(call(mine, {"prompt": "a red circle", "model": model})[0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--model", default="null")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as name, facade(Path(name), options.model) as line:
        (server,) = psutil.Process().children()
        for count in (1, options.callers, options.callers, options.callers):
            with ThreadPoolExecutor(count) as pool:
                until = time.monotonic() + options.seconds
                work = [pool.submit(keep_calling, line, options.model, until) for _ in range(count)]
                each = [one.result() for one in work]
            calls = sorted(seconds for own in each for seconds in own)
            counts = [len(own) for own in each]
            late = quantiles(calls, n=100)[98]
            lines.append(
                f"{count:3} callers  {len(calls) / options.seconds:6.0f} calls/s  "
                f"p50 {1000 * median(calls):.0f} ms, p99 {1000 * late:.0f} ms, "
                f"most {1000 * calls[-1]:.0f} ms  evenly {min(counts) / max(counts):.2f}  "
                f"memory {server.memory_info().rss >> 20} MiB"
            )
    report(f"Many callers, {options.model}", lines)


if __name__ == "__main__":
    main()
