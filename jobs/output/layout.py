"""Where everything lies below a run's output location. All paths are relative to it.

images/00000/<job id>.jpg      one folder for each plan shard
metadata.jsonl                 a row an image, in manifest order
errors.jsonl                   a row for each request that has no image
run.json                       which run wrote this, its state, counts and timings
_run/<run id>/manifest.jsonl.gz, plan.json, invalid.jsonl
_run/<run id>/plan/00000.json
_run/<run id>/parts/00000.0000.done.jsonl     the chunk is complete
_run/<run id>/parts/00000.0000.<attempt>.jsonl  what an interrupted chunk had finished
_run/<run id>/parts/00000.reused.<n>.jsonl    records of an earlier run with the same job ids
_inputs/<sha256>               input images that requests name by their hash
"""

from __future__ import annotations

import re

from jobs.formats import FORMATS, ImageFormat

METADATA = "metadata.jsonl"
ERRORS = "errors.jsonl"
RUN = "run.json"

_PART = re.compile(
    r"(?P<shard>[0-9]{5,9})\."
    r"((?P<chunk>[0-9]{4,9})\.((?P<done>done)|[0-9a-z]+)|reused\.[0-9]{4,9})\.jsonl"
)


def image(shard: int, job_id: str, image_format: ImageFormat) -> str:
    """The path of one image. Job ids are hexadecimal, so nothing a user wrote becomes a path."""
    return f"images/{shard:05d}/{job_id}.{FORMATS[image_format].extension}"


def manifest(run_id: str) -> str:
    return f"_run/{run_id}/manifest.jsonl.gz"


def invalid(run_id: str) -> str:
    """Rows for the lines that --skip-invalid left out, in manifest order."""
    return f"_run/{run_id}/invalid.jsonl"


def plan(run_id: str) -> str:
    """The plan's index. It is written last: a plan without it does not exist."""
    return f"_run/{run_id}/plan.json"


def shard(run_id: str, number: int) -> str:
    return f"_run/{run_id}/plan/{number:05d}.json"


def parts(run_id: str) -> str:
    return f"_run/{run_id}/parts"


def done_part(run_id: str, shard: int, chunk: int) -> str:
    """Its existence says that the chunk is complete."""
    return f"{parts(run_id)}/{shard:05d}.{chunk:04d}.done.jsonl"


def interrupted_part(run_id: str, shard: int, chunk: int, token: str) -> str:
    """Records of a chunk that stopped early; `token` keeps interrupted attempts apart."""
    return f"{parts(run_id)}/{shard:05d}.{chunk:04d}.{token}.jsonl"


def reused_part(run_id: str, shard: int, number: int) -> str:
    return f"{parts(run_id)}/{shard:05d}.reused.{number:04d}.jsonl"


def stored_input(sha256: str) -> str:
    """The path of an input image; `sha256` is hexadecimal."""
    return f"_inputs/{sha256}"


def shard_of_part(name: str) -> int | None:
    """The plan shard that a part's records belong to; None if the file name is no part's."""
    found = _PART.fullmatch(name)
    return int(found["shard"]) if found else None


def chunk_of_done_part(name: str) -> tuple[int, int] | None:
    """(shard, chunk) of a complete chunk's part; None for any other file name."""
    found = _PART.fullmatch(name)
    return (int(found["shard"]), int(found["chunk"])) if found and found["done"] else None
