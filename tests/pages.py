"""Runs for tests of the page, without a worker: plans, and what workers would have stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO

from PIL import Image

from jobs.output import layout
from jobs.output.dataset import planned, write_summary
from jobs.output.plan import Chunk, Plan, Shard, encode_shard, read_shard, write_plan
from jobs.output.records import write_part
from jobs.output.storage import Storage
from tests.samples import KEY, make_plan, make_record, make_request, store_image


def job(number: int) -> str:
    """The job id of a request; as with real ones, half of it tells them apart."""
    return f"{number:016x}{0:016x}"


def plan_run(
    storage: Storage,
    run_id: str,
    requests: int,
    shard: int = 4096,
    chunk: int = 64,
    prompts: Mapping[int, str] = {},
    model: str = "null",
) -> Plan:
    """A run of so many requests: their seeds count from 0, `prompts` replaces some texts."""
    key, shards = replace(KEY, model=model), []
    for number, first in enumerate(range(0, requests, shard)):
        rows = range(first, min(first + shard, requests))
        own = [
            make_request(i, key, job_id=job(i), prompt=prompts.get(i, f"scene {i}")) for i in rows
        ]
        storage.write(layout.shard(run_id, number), encode_shard(own))
        starts = range(0, len(own), chunk)
        chunks = tuple(Chunk(model, i, min(i + chunk, len(own))) for i in starts)
        shards.append(Shard(len(own), chunks))
    for place in (layout.manifest, layout.invalid):
        storage.write(place(run_id), b"")
    plan = make_plan(run_id, {model: "f"}, tuple(shards))
    write_plan(storage, plan)
    write_summary(storage, planned(plan))
    return plan


def settle(
    storage: Storage, plan: Plan, shard: int, chunk: int, failed: Mapping[int, str] = {}
) -> None:
    """Store a chunk as a worker would. failed: index of a request → the message of its failure."""
    part = plan.shards[shard].chunks[chunk]
    records = []
    for request in read_shard(storage, plan.run_id, shard)[part.start : part.stop]:
        if message := failed.get(request.index):
            record = make_record(request, status="failed", code="render_error", message=message)
        else:
            record = store_image(storage, request, _colour(request.seed), shard)
        records.append(record)
    write_part(storage, layout.done_part(plan.run_id, shard, chunk), records)


def _colour(seed: int) -> bytes:
    data = BytesIO()
    Image.new("RGB", (64, 64), (seed % 256, seed // 256 % 256, 128)).save(data, "PNG")
    return data.getvalue()
