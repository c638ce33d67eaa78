"""A whole installation for a test: a broker, workers of its own, small planned runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import psutil

from jobs.broker.connection import connect, connect_async
from jobs.broker.dispatch import Dispatcher, start_run
from jobs.broker.fleet import Fleet
from jobs.broker.messages import RENDER, Message, make
from jobs.broker.progress import Progress
from jobs.broker.queues import BULK, queue_name
from jobs.broker.runs import Runs
from jobs.broker.seals import make_seal
from jobs.calls.call import Answer, Call
from jobs.calls.waiting import CallLimits, CallQueue
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.layout import ERRORS, METADATA
from jobs.output.plan import Chunk, Plan, Shard, encode_shard, read_shard, write_plan
from jobs.output.records import parts_by_shard, read_part
from jobs.output.storage import Storage, open_storage
from jobs.requests import Request
from jobs.settings import Settings
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify, prepare
from tests.support import eventually

DEMO = Path(__file__).parents[1] / "configs/demo/shapes"
MODELS = f"""
default = "null"
[models.null]
repo = "null:"
size = [64, 64]
batch_width = 4
[models.slow]
repo = "null:"
size = [64, 64]
batch_width = 1
options = {{ sleep = 0.25 }}
[models.shapes]
repo = "{DEMO}"
family = "stable-diffusion"
size = [64, 64]
batch_width = 4
steps = 2
guidance_scale = 3.0
"""


def queue_chunks(
    sender: Dispatcher, run_id: str, epoch: int, shard: int, model: str, chunks: Iterable[int]
) -> None:
    """Send messages of chunks, whosever turn it is."""
    queue = queue_name(BULK, model)
    messages = [Message(RENDER, (run_id, epoch, shard, chunk), queue) for chunk in chunks]
    raw = [make(message, sender.seal) for message in messages]
    sender.client.lpush(f"{sender.prefix}{queue}", *raw)


@dataclass
class Site:
    """A broker, a place for output (the folder, unless `out` names another), and its workers."""

    folder: Path
    settings: Settings
    out: str = ""
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = load_models(self.settings.models)
        self.client = connect(self.settings)
        self.runs = Runs(self.client, self.settings.key_prefix, make_seal(self.settings))
        self.fleet = Fleet(self.client, self.settings.key_prefix)
        self.dispatcher = Dispatcher(self.client, self.settings.key_prefix, self.runs.seal)

    def start_worker(self, models: str | None, *options: str) -> subprocess.Popen[str]:
        """`imagemill worker` on the CPU, with the models or those that its table serves."""
        named = ["--models", models] if models else []
        command = ["-m", "worker", "--devices", "cpu", *named, *options]
        with self._log(len(self.workers)).open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | self.settings.environment(),
                stderr=log,
                text=True,
            )
        self.workers.append(worker)
        return worker

    def make_call(self, request: Request) -> Call:
        """Team blue asks for it."""
        return Call(id="a", team="blue", request=request, out=str(self.folder), path="calls/a.png")

    def answer(self, call: Call, seconds: float = 60.0) -> Answer:
        """Put an interactive call as a facade does, and wait for its answer."""

        async def wait() -> Answer:
            async with connect_async(self.settings) as client, asyncio.timeout(seconds):
                prefix, limits = self.settings.key_prefix, CallLimits(60, 9, 9)
                queue = CallQueue(client, prefix, limits, self.runs.seal)
                await queue.put(call)
                return await queue.wait(call)

        return asyncio.run(wait())

    def log(self, worker: subprocess.Popen[str]) -> str:
        """What a worker and its processes have written to stderr."""
        return self._log(self.workers.index(worker)).read_text()

    def _log(self, number: int) -> Path:
        return self.folder / f"worker-{number}.log"

    def storage(self, run_id: str) -> Storage:
        """Where the output of a run goes."""
        return open_storage(f"{self.out or self.folder}/{run_id}")

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """All rows of a finished run's dataset."""
        storage = self.storage(run_id)
        return [row for name in (METADATA, ERRORS) for row in read_part(storage, name)]

    def records(self, run_id: str) -> list[str]:
        """The job ids of all records of a run's parts."""
        storage = self.storage(run_id)
        # Not what a killed process was about to rename: no reader ever sees that.
        parts = [part for some in parts_by_shard(storage, run_id).values() for part in some]
        return [row["job_id"] for part in parts for row in read_part(storage, part)]

    def plan(
        self,
        run_id: str,
        model: str,
        seeds: list[int],
        chunk: int,
        shard: int = 4096,
        image: str | None = None,
    ) -> Plan:
        """A run of one request a seed: so many requests a chunk, at most so many a shard.

        image: what all of them edit, instead of generating.
        """
        edits = {"image": image} if image else {}
        lines = (
            {
                "custom_id": f"seed-{seed}",
                "prompt": f"a red circle {seed}",
                "seed": seed,
                "response_format": "png",
                "slots": self.table.get(model).batch_width,  # also of the last batch
                **edits,
            }
            for seed in seeds
        )
        manifest = self.folder / f"{run_id}.jsonl"
        manifest.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        out = f"{self.out or self.folder}/{run_id}"
        job = Job(str(manifest), out, self.table, PlanOptions(model=model))
        plan = prepare(replace(identify(job), run_id=run_id))
        return self._cut(plan, model, chunk, shard)

    def _cut(self, plan: Plan, model: str, chunk: int, shard: int) -> Plan:
        """The plan of few requests as if they were many."""
        storage, run_id = self.storage(plan.run_id), plan.run_id
        requests = [one for i in range(len(plan.shards)) for one in read_shard(storage, run_id, i)]
        shards = []
        for number, first in enumerate(range(0, len(requests), shard)):
            own = requests[first : first + shard]
            storage.write(layout.shard(run_id, number), encode_shard(own))
            starts = range(0, len(own), chunk)
            chunks = tuple(Chunk(model, i, min(i + chunk, len(own))) for i in starts)
            shards.append(Shard(len(own), chunks))
        plan = replace(plan, shards=tuple(shards))
        write_plan(storage, plan)
        return plan

    def start(self, plan: Plan) -> None:
        start_run(plan, self.storage(plan.run_id), self.runs, self.dispatcher)

    def progress(self, run_id: str) -> Progress:
        progress = self.runs.progress(run_id)
        assert progress is not None
        return progress

    def wait(self, run_id: str, seconds: float = 60.0) -> list[dict[str, Any]]:
        """The rows of the run's images, once it is finished."""
        eventually(lambda: self.progress(run_id).state != "running", seconds)
        assert self.progress(run_id).state == "finished", self.progress(run_id).problem
        return [row for row in self.rows(run_id) if row["status"] == "done"]

    def wait_for_images(self, run_id: str, count: int) -> None:
        eventually(lambda: self.progress(run_id).done >= count)

    def parents(self, worker: subprocess.Popen[str]) -> list[psutil.Process]:
        """The processes that talk to the broker, of one supervisor."""
        return psutil.Process(worker.pid).children()

    def pool_processes(self, worker: subprocess.Popen[str]) -> list[psutil.Process]:
        """The processes that render, of one supervisor."""
        return [
            child
            for parent in self.parents(worker)
            for child in parent.children()
            if any("spawn_main" in word for word in child.cmdline())
        ]
