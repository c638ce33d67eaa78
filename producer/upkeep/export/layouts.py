"""Lays the images of a benchmark suite out as the suite's own scorer reads them.

| suite | below the target | read by |
|---|---|---|
| geneval | 00000/samples/0000.png, 00000/metadata.jsonl | djghosh13/geneval: evaluate_images.py |
| t2i-compbench | <file>/samples/<prompt>_000000.png | Karine-Huang/T2I-CompBench: BLIP_vqa.py, … |
| drawbench | 00000.jpg | tgxs002/HPSv2: evaluation.py, `drawbench` |
| hpsv2 | <style>/00000.jpg | tgxs002/HPSv2: evaluation.py, `benchmark` |
| dpg | <item_id>.png, a prompt's images in a square | TencentQQGYLab/ELLA: compute_dpg_bench.py |
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from typing import cast

from PIL import Image

from jobs.errors import UsageError
from jobs.formats import FORMATS
from jobs.output.dataset import read_finished, read_rows
from jobs.output.images import ImageReader
from jobs.output.records import Row
from jobs.output.storage import Storage, open_storage
from producer.planning.presets import ABOUT, KEY, PRESETS, SUITE, SuiteName
from producer.upkeep.export.selection import Condition

MAX_NAME = 255  # bytes of a file's name, on most disks
_KEY = re.compile(r"\w[\w. -]{0,99}(/\w[\w. -]{0,99})?", re.ASCII)

Progress = Callable[[int, int], None]  # images so far, of how many


@dataclass(frozen=True, slots=True)
class LaidOut:
    """What lies at the target now. written: files that this command wrote."""

    target: str
    suite: SuiteName
    prompts: int
    images: int
    written: int


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a layout: the image of a row, those of several in a square, or a text."""

    path: str
    rows: Sequence[Row] = ()
    text: str = ""


def lay_out(
    out: str, to: str, suite: SuiteName, condition: Condition | None, progress: Progress
) -> LaidOut:
    """Copy a dataset's images of a suite to where its scorer looks for them.

    What is there already is compared, as nothing beside the files tells whose they are.

    Raises:
        UsageError: the suite has no scorer; there is no finished run, no image of the suite, or one
            that its scorer would not find; the target holds something else.
        FatalError: an image is missing or damaged.
    """
    source, target = open_storage(out), open_storage(to)
    if suite not in _LAYOUTS:
        raise UsageError(
            f"{suite} has no scorer, and so no layout",
            f"There are layouts of {', '.join(_LAYOUTS)}. Else: --to parquet or webdataset.",
        )
    if source.holds(target):
        raise UsageError(f"{to} is inside the dataset", "Choose a place outside of it.")
    summary = read_finished(source)
    wanted = {one.path for files in _prompts(source, suite, condition) for one in files}
    if not wanted:
        raise UsageError(
            f"{out} holds no images of {suite}",
            f"Render the suite's own manifest: imagemill preset {suite} FILE > manifest.jsonl",
        )
    there = {path for path in target.sizes("") if not path.rpartition("/")[2].startswith(".")}
    for path in there - wanted:
        raise _taken(target, f"{path}, which is none of these images")
    prompts = images = written = 0
    with closing(ImageReader(source)) as reader:
        for files in _prompts(source, suite, condition):
            for file in files:
                if file.path not in there:
                    target.write(file.path, _content(file, reader))
                    written += 1
                elif not _is(file, target.read(file.path), reader):
                    raise _taken(target, f"another {file.path}")
            prompts += 1
            images += sum(len(file.rows) for file in files)
            progress(images, summary.done)
    return LaidOut(target.uri, suite, prompts, images, written)


def _taken(target: Storage, what: str) -> UsageError:
    return UsageError(f"{target.uri} holds {what}", "Choose another place, or remove what it has.")


def _prompts(
    source: Storage, suite: SuiteName, condition: Condition | None
) -> Iterator[list[_File]]:
    """The files of each prompt. Raises UsageError as lay_out."""
    before = Counter[str]()  # images of each folder
    for key, rows in groupby(_rows(source, suite, condition), _key):
        yield list(_LAYOUTS[suite](key, list(rows), before))


def _rows(source: Storage, suite: SuiteName, condition: Condition | None) -> Iterator[Row]:
    """The suite's rows that fit. Raises UsageError for one whose file no scorer would read."""
    extension = FORMATS[PRESETS[suite].format].extension
    for row in read_rows(source):
        if _column(row, SUITE) != suite or not (condition is None or condition.holds(row)):
            continue
        if not row["file_name"].endswith(f".{extension}"):
            raise UsageError(
                f"{row['file_name']} is no {extension}, as {suite}'s scorer reads them",
                f"The lines of imagemill preset {suite} say so in response_format.",
            )
        if not _KEY.fullmatch(_key(row)):
            raise UsageError(
                f"{row['file_name']} has the {KEY} {_key(row)!r:.80}, which is none of {suite}'s",
                f"Render the lines of imagemill preset {suite} FILE as they are.",
            )
        yield row


def _key(row: Row) -> str:
    return _column(row, KEY)


def _column(row: Row, name: str) -> str:
    return str(cast("Mapping[str, object]", row).get(name, ""))


def _content(file: _File, reader: ImageReader) -> bytes:
    if file.text:
        return file.text.encode()
    images = list(reader.read(file.rows))
    return images[0] if len(images) == 1 else _square(images)


def _is(file: _File, data: bytes, reader: ImageReader) -> bool:
    """Whether that is the file's content."""
    if len(file.rows) == 1:
        return sha256(data).hexdigest() == file.rows[0]["sha256"]
    return data == _content(file, reader)


def _square(images: Sequence[bytes]) -> bytes:
    """Images of one size, 4, 9, …, from the upper left to the lower right, as a PNG."""
    opened = [Image.open(BytesIO(data)) for data in images]
    width, height = opened[0].size
    across = math.isqrt(len(opened))
    square = Image.new("RGB", (across * width, across * height))
    for number, image in enumerate(opened):
        square.paste(image, (number % across * width, number // across * height))
    data = BytesIO()
    square.save(data, "PNG")
    return data.getvalue()


def _geneval(key: str, rows: Sequence[Row], before: Counter[str]) -> Iterator[_File]:
    yield _File(f"{key}/metadata.jsonl", text=_column(rows[0], ABOUT))
    for number, row in enumerate(rows):
        before[key] += 1
        yield _File(f"{key}/samples/{number:04d}.png", [row])


def _compbench(key: str, rows: Sequence[Row], before: Counter[str]) -> Iterator[_File]:
    folder = key.partition("/")[0]
    for row in rows:
        name = f"{row['prompt']}_{before[folder]:06d}.png"
        if "/" in name or not name.isprintable() or len(name.encode()) > MAX_NAME:
            raise UsageError(
                f"{row['file_name']}: its prompt cannot be part of a file's name, where "
                "t2i-compbench's scorer looks for it",
                "Leave it out: --where 'prompt != \"…\"'.",
            )
        before[folder] += 1
        yield _File(f"{folder}/samples/{name}", [row])


def _one_each(key: str, rows: Sequence[Row], before: Counter[str]) -> Iterator[_File]:
    if len(rows) > 1:
        raise UsageError(
            f"{len(rows)} images of prompt {key}, and the suite's scorer reads one",
            "Choose: --where, as in --where 'not \"#\" in custom_id'.",
        )
    before[""] += 1
    yield _File(f"{key}.jpg", rows)


def _squares(key: str, rows: Sequence[Row], before: Counter[str]) -> Iterator[_File]:
    sizes = {(row["width"], row["height"]) for row in rows}
    if math.isqrt(len(rows)) ** 2 != len(rows) or len(sizes) > 1:
        raise UsageError(
            f"{len(rows)} images of prompt {key} are no square for the suite's scorer: "
            "it takes 1, 4 or 9, of one size",
            "Render those that failed, or leave the prompt out by --where.",
        )
    before[""] += len(rows)
    yield _File(f"{key}.png", rows)


_Layout = Callable[[str, Sequence[Row], Counter[str]], Iterable[_File]]
_LAYOUTS: Mapping[SuiteName, _Layout] = {
    "geneval": _geneval,
    "t2i-compbench": _compbench,
    "drawbench": _one_each,
    "hpsv2": _one_each,
    "dpg": _squares,
}
