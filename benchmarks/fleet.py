"""What many workers on one Redis make, against as many times what one makes.

    python -m benchmarks.fleet [--workers 1,4,8,16,64] [--seconds 60] [--sleep 4.0]

Each device is the null renderer that sleeps for its batches of 16; all of them are on this machine,
and have started before the manifest is submitted. job ÷ ideal: the sleeping that each worker has to
do for its share, over the time from the first batch to the last record; --seconds is how long that
share is. Beside it 256 requests that meet them all.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import redis

from benchmarks.measure import imagemill, report, rows, write_manifest
from jobs.broker.connection import connect
from jobs.broker.fleet import Fleet
from jobs.settings import load_settings
from producer.local.embedded import Crew, Embedded, embedded

BATCH = 16


@dataclass(frozen=True)
class Load:
    """What Redis has done: commands, bytes in and out, seconds of its processor."""

    commands: int
    bytes: int
    seconds: float

    @classmethod
    def of(cls, client: redis.Redis) -> Load:
        """What it has done so far."""
        info = client.info()
        return cls(
            info["total_commands_processed"],
            info["total_net_input_bytes"] + info["total_net_output_bytes"],
            info["used_cpu_user"] + info["used_cpu_sys"],
        )

    def since(self, before: Load, images: int) -> str:
        """What of it an image has cost."""
        return (
            f"{(self.commands - before.commands) / images:.1f} Redis commands, "
            f"{(self.bytes - before.bytes) / images / 1000:.1f} kB and "
            f"{(self.seconds - before.seconds) / images * 1000:.2f} ms of Redis' processor an image"
        )


@dataclass(frozen=True)
class Site:
    """Workers that wait for work, and where their output goes."""

    children: Embedded
    folder: Path
    workers: int
    sleep: float

    def run(self, images: int) -> str:
        """A line about a job of so many images."""
        manifest = write_manifest(self.folder / f"{images}.jsonl", images)
        out = self.folder / f"out-{self.workers}-{images}"
        settings = self.children.settings
        client = connect(settings)
        before = Load.of(client)
        where = ["--broker", settings.broker, "--models-file", str(self.folder / "models.toml")]
        imagemill("submit", str(manifest), "--out", str(out), *where)
        imagemill("watch", str(out), "--quiet", "--broker", settings.broker)
        load = Load.of(client)
        found = rows(out)
        assert len(found) == images
        begun = {row["batch_started"] for row in found}
        ended = max(datetime.fromisoformat(row["created_at"]).timestamp() for row in found)
        # batch_started is of this machine's monotonic clock, created_at is not.
        span = ended - (min(begun) + time.time() - time.monotonic())
        batches = math.ceil(images / BATCH / self.workers)  # of whoever has the most
        ideal = batches * self.sleep
        return (
            f"{self.workers:3} workers, {images:6} images: job ÷ ideal {ideal / span:.3f}, "
            f"time ÷ ideal {span / ideal:.3f}, {images / span:.0f} images/s, "
            f"{load.since(before, images)}"
        )


def measure(workers: int, seconds: float, sleep: float, folder: Path) -> list[str]:
    (folder / "models.toml").write_text(
        'default = "sleeping"\n[models.sleeping]\nrepo = "null:"\nsize = [64, 64]\nthreads = 1\n'
        f"batch_width = {BATCH}\noptions = {{ sleep = {sleep} }}\n"
    )
    settings = load_settings().model_copy(update={"models": str(folder / "models.toml")})
    with embedded(settings, Crew("cpu", workers)) as children:
        children.serve(["sleeping"])
        fleet = Fleet(connect(children.settings), children.settings.key_prefix)
        while len(fleet.workers()) < workers:
            children.check()
            time.sleep(0.2)
        site = Site(children, folder, workers, sleep)
        long = BATCH * workers * max(2, round(seconds / sleep))
        return [site.run(long), *([site.run(256)] if workers > 1 else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,4,8,16,64")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sleep", type=float, default=4.0)
    options = parser.parse_args()
    found = []
    for workers in map(int, options.workers.split(",")):
        with tempfile.TemporaryDirectory() as name:
            found += measure(workers, options.seconds, options.sleep, Path(name))
    report(f"A fleet on one machine, {options.sleep} s a batch of {BATCH}", found)


if __name__ == "__main__":
    main()
