"""Where everything lies below a run's output location. All paths are relative to it.

images/00000/<job id>.jpg      one folder for each plan shard
metadata.jsonl                 a row an image, in manifest order
errors.jsonl                   a row for each request that has no image
rejects.jsonl                  a row for each candidate that was not chosen, where lines choose
run.json                       which run wrote this, its state, counts and timings
_run/<run id>/manifest.jsonl.gz, plan.json, invalid.jsonl
_run/<run id>/plan/00000.json
_run/<run id>/parts/00000.0000.done.jsonl     the chunk is complete
_run/<run id>/parts/00000.0000.<attempt>.jsonl  what an interrupted chunk had finished
_run/<run id>/parts/00000.reused.<n>.jsonl    records of an earlier run with the same job ids
_run/<run id>/chosen_by.json   the scorers by which it chooses among candidates
_run/<run id>/scores/<scorer>.<version>/00000.jsonl   columns that hang on all images of the run
_scores/<scorer>.json          the version of a scorer, and the columns that the dataset shows
_scores/<scorer>.<version>/00000.<run id>.00000.jsonl   an image folder's, by who scored it
_scores/<scorer>.<version>/00000.<run id>.00000.0000.jsonl   a chunk's, scored as it was rendered
_inputs/<sha256>               input images that requests name by their hash
"""

from __future__ import annotations

import re

from jobs.formats import FORMATS, ImageFormat

METADATA = "metadata.jsonl"
ERRORS = "errors.jsonl"
REJECTS = "rejects.jsonl"
DATASET = (METADATA, ERRORS, REJECTS)  # what people and loaders read
RUN = "run.json"
SCORES = "_scores"

_IMAGE = re.compile(
    rf"images/[0-9]{{5,}}/[0-9a-f]{{32}}\.({'|'.join(one.extension for one in FORMATS.values())})"
)
_PART = re.compile(
    r"(?P<shard>[0-9]{5,9})\."
    r"((?P<chunk>[0-9]{4,9})\.((?P<done>done)|[0-9a-z]+)|reused\.[0-9]{4,9})\.jsonl"
)
_SCORES = re.compile(
    r"([0-9]{5,9})\.[A-Za-z0-9_-]{1,64}\.[0-9]{5,9}(\.[0-9]{4,9}(\.[0-9a-z]+)?)?\.jsonl"
)


def image(shard: int, job_id: str, image_format: ImageFormat) -> str:
    """The path of one image. Job ids are hexadecimal, so nothing a user wrote becomes a path."""
    return f"images/{shard:05d}/{job_id}.{FORMATS[image_format].extension}"


def is_image(path: str) -> bool:
    """Whether an image has such a path."""
    return _IMAGE.fullmatch(path) is not None


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


def scoring(name: str) -> str:
    """What a dataset knows of a scorer. Written last: without it no column is shown."""
    return f"{SCORES}/{name}.json"


def scores(key: str) -> str:
    """The folder of a scorer's columns; `key` is its name and version."""
    return f"{SCORES}/{key}"


def folder_scores(key: str, folder: int, run_id: str, shard: int, chunk: str = "") -> str:
    """Scores of images in images/<folder>/, made when a shard of a run was scored, or a chunk of it
    was rendered: then that one's number, and what tells attempts apart."""
    which = f"{shard:05d}.{chunk}" if chunk else f"{shard:05d}"
    return f"{scores(key)}/{folder:05d}.{run_id}.{which}.jsonl"


def folder_of_scores(name: str) -> int | None:
    """The image folder that a file of scores is about; None if the name is no such file's."""
    found = _SCORES.fullmatch(name)
    return int(found[1]) if found else None


def chosen_by(run_id: str) -> str:
    """The scorers, with their versions, by whose columns a run chooses among candidates."""
    return f"_run/{run_id}/chosen_by.json"


def relations(run_id: str, key: str, shard: int) -> str:
    return f"_run/{run_id}/scores/{key}/{shard:05d}.jsonl"


def shard_of_part(name: str) -> int | None:
    """The plan shard that a part's records belong to; None if the file name is no part's."""
    found = _PART.fullmatch(name)
    return int(found["shard"]) if found else None


def chunk_of_done_part(name: str) -> tuple[int, int] | None:
    """(shard, chunk) of a complete chunk's part; None for any other file name."""
    found = _PART.fullmatch(name)
    return (int(found["shard"]), int(found["chunk"])) if found and found["done"] else None
