"""Requests and what rendered them, as they come: a test names the fields that it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from jobs.output import layout
from jobs.output.plan import Plan, Shard
from jobs.output.records import Record, Stack
from jobs.output.storage import Storage
from jobs.requests import BatchKey, Request

KEY = BatchKey(
    task="generate", model="null", adapter="", width=64, height=64, steps=8, guidance_scale=3.0
)
STACK = Stack(
    repo="null:",
    revision="1",
    fingerprint="f",
    pipeline="P",
    scheduler="S",
    dtype="float32",
    device="cpu",
    device_name="test",
    batch_width=4,
    threads=1,
    versions="none 1",
)


def make_key(**fields: Any) -> BatchKey:
    return KEY._replace(**fields)


def make_request(number: int = 0, key: BatchKey = KEY, **fields: Any) -> Request:
    """Request `number`, from 0, of a run: its seed and its job id are the number too."""
    usual = Request(
        index=number,
        custom_id=f"row-{number}",
        key=key,
        prompt=f"scene {number}",
        negative_prompt="",
        seed=number,
        format="png",
        job_id=f"{number:032x}",
    )
    return usual._replace(**fields)


def make_record(request: Request, **fields: Any) -> Record:
    """What became of it: done, unless the fields say otherwise."""
    usual = Record(
        request=request, status="done", stack=STACK, worker="w", attempt=1, created_at="2026-01-01"
    )
    return replace(usual, **fields)


def store_image(
    storage: Storage, request: Request, data: bytes, shard: int = 0, **fields: Any
) -> Record:
    """Write its file where a worker would; returns the record of it."""
    name = layout.image(shard, request.job_id, request.format)
    storage.write(name, data, durable=False)
    digest = sha256(data).hexdigest()
    return make_record(request, file_name=name, sha256=digest, bytes=len(data), **fields)


def make_plan(
    run_id: str, fingerprints: Mapping[str, str] = {}, shards: tuple[Shard, ...] = (), **fields: Any
) -> Plan:
    usual = Plan(
        run_id=run_id,
        manifest="m.jsonl",
        seed=0,
        created_at="2026-01-01",
        fingerprints=dict(fingerprints),
        shards=shards,
    )
    return replace(usual, **fields)
