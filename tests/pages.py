"""Runs for tests of the page, without a worker: plans, and what workers would have stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from io import BytesIO

from PIL import Image

from jobs.output import layout
from jobs.output.dataset import planned, write_summary
from jobs.output.plan import Chunk, Plan, Shard, encode_shard, read_shard, write_plan
from jobs.output.records import Record, write_part
from jobs.output.storage import Storage
from jobs.requests import BatchKey, Request
from tests.datasets import STACK

KEY = BatchKey("generate", "null", "", 64, 64, 8, 3.0)


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
            Request(
                i, f"row-{i}", key, prompts.get(i, f"scene {i}"), "", i, "png", f"{i:032x}"
            )
            for i in rows
        ]  # fmt: skip
        storage.write(layout.shard(run_id, number), encode_shard(own))
        starts = range(0, len(own), chunk)
        chunks = tuple(Chunk(model, i, min(i + chunk, len(own))) for i in starts)
        shards.append(Shard(len(own), chunks))
    plan = Plan(run_id, "m.jsonl", 0, "", {model: "f"}, tuple(shards))
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
            record = Record(
                request, "failed", STACK, "w", 1, "2026-01-01", code="render_error", message=message
            )
        else:
            name, data = layout.image(shard, request.job_id, request.format), _colour(request.seed)
            storage.write(name, data, durable=False)
            record = Record(
                request, "done", STACK, "w", 1, "2026-01-01",
                file_name=name, sha256=sha256(data).hexdigest(), bytes=len(data),
            )  # fmt: skip
        records.append(record)
    write_part(storage, layout.done_part(plan.run_id, shard, chunk), records)


def _colour(seed: int) -> bytes:
    data = BytesIO()
    Image.new("RGB", (64, 64), (seed % 256, seed // 256 % 256, 128)).save(data, "PNG")
    return data.getvalue()
