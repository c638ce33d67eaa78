"""Finished datasets for tests, without a worker: real image files, and records of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from jobs.formats import FORMATS
from jobs.output import layout
from jobs.output.dataset import Summary, write_dataset, write_summary
from jobs.output.plan import Chunk, Plan, Shard, encode_shard, write_plan
from jobs.output.records import Row, encode_part, write_part
from jobs.output.storage import open_storage
from tests.samples import make_plan, make_request, store_image


def make_dataset(out: str, images: int, changes: Mapping[int, Mapping[str, Any]] = {}) -> list[Row]:
    """A finished run of so many 8 x 8 JPEGs; returns its rows.

    changes: number of an image → what its row says otherwise; a "response_format" changes the file.
    """
    storage = open_storage(out)
    rows: list[Row] = []
    for number in range(images):
        change = changes.get(number, {})
        kind = change.get("response_format", "jpeg")
        data = BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(data, FORMATS[kind].pillow)
        request = make_request(number, prompt=f"scene {number // 2}", format=kind)
        record = store_image(storage, request, data.getvalue())
        rows.append({**record.row(), **change})  # type: ignore[typeddict-item]
    write_rows(out, rows)
    return rows


def write_rows(out: str, rows: Sequence[Row]) -> None:
    """Make these the rows of the dataset."""
    storage = open_storage(out)
    storage.write(layout.METADATA, encode_part(rows))
    summary = Summary(
        run_id="0" * 12,
        state="finished",
        manifest="m",
        seed=7,
        created_at="2026-01-01",
        requests=len(rows),
        done=len(rows),
    )
    write_summary(storage, summary)


def make_run(out: str, images: Sequence[Image.Image], prompts: Sequence[str] = ()) -> Plan:
    """A finished run with its plan and parts, of these images as PNGs, three to a shard."""
    storage, shards, stacked = open_storage(out), [], 3
    run_id = f"{len(images):012x}"
    for number, start in enumerate(range(0, len(images), stacked)):
        records = []
        for index in range(start, min(start + stacked, len(images))):
            data = BytesIO()
            images[index].save(data, "PNG")
            request = make_request(index)
            if prompts:
                request = request._replace(prompt=prompts[index])
            records.append(store_image(storage, request, data.getvalue(), number))
        requests = [record.request for record in records]
        storage.write(layout.shard(run_id, number), encode_shard(requests))
        write_part(storage, layout.done_part(run_id, number, 0), records)
        shards.append(Shard(len(requests), (Chunk("null", 0, len(requests)),)))
    plan = make_plan(run_id, {"null": "f"}, tuple(shards))
    write_plan(storage, plan)
    write_dataset(storage, plan)
    return plan
