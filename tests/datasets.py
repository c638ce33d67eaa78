"""Finished datasets for tests, without a worker: real image files, and records of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from typing import Any

from PIL import Image

from jobs.formats import FORMATS
from jobs.output import layout
from jobs.output.dataset import Summary, write_summary
from jobs.output.records import Record, Row, Stack, encode_part
from jobs.output.storage import open_storage
from jobs.requests import BatchKey, Request

STACK = Stack("null:", "1", "f", "P", "S", "float32", "cpu", "test", 4, 1, "none 1")
KEY = BatchKey("generate", "null", "", 64, 64, 8, 3.0)


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
        request = Request(
            number, f"row-{number}", KEY, f"scene {number // 2}", "", number, kind, f"{number:032x}"
        )
        name = layout.image(0, request.job_id, kind)
        storage.write(name, data.getvalue(), durable=False)
        digest, size = sha256(data.getvalue()).hexdigest(), len(data.getvalue())
        record = Record(
            request, "done", STACK, "w", 1, "2026-01-01", file_name=name, sha256=digest, bytes=size
        )
        rows.append({**record.row(), **change})  # type: ignore[typeddict-item]
    write_rows(out, rows)
    return rows


def write_rows(out: str, rows: Sequence[Row]) -> None:
    """Make these the rows of the dataset."""
    storage = open_storage(out)
    storage.write(layout.METADATA, encode_part(rows))
    summary = Summary("0" * 12, "finished", "m", 7, "2026-01-01", len(rows), done=len(rows))
    write_summary(storage, summary)
