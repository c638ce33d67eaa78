"""Benchmark suites of text-to-image models: their own prompt files as manifests.

Each line says what the suite's scorer needs to find its image again; `imagemill export --layout`
reads it (producer/upkeep/export/layouts.py). Files and numbers of images are those of
djghosh13/geneval, Karine-Huang/T2I-CompBench, google-research/parti, the DrawBench table of
"Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding" (Saharia et al.,
2022), tgxs002/HPSv2 and TencentQQGYLab/ELLA.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from jobs.errors import UsageError
from jobs.formats import ImageFormat

SuiteName = Literal["geneval", "t2i-compbench", "parti", "drawbench", "hpsv2", "dpg"]

# Columns of the dataset, which the layouts read.
SUITE, KEY, ABOUT = "suite", "suite_key", "suite_metadata"

_GENEVAL = ("tag", "include", "prompt")  # what its scorer reads of each line

Prompt = tuple[str, str, dict[str, str]]  # its key in the suite, its text, more columns


@dataclass(frozen=True, slots=True)
class Preset:
    """file: what the suite calls its prompts; read: these, of one file; images: of each prompt, as
    the suite's authors make them; format: what its scorer reads."""

    file: str
    read: Callable[[Path], Iterator[Prompt]]
    images: int
    format: ImageFormat


def manifest_lines(name: SuiteName, files: list[Path], n: int | None = None) -> Iterator[bytes]:
    """The manifest of a suite's files, a line a prompt. n: images of each, if not the suite's own.

    Raises:
        UsageError: a file is missing, or none of the suite's.
    """
    preset = PRESETS[name]
    for file in files:
        count = 0
        try:
            for key, prompt, columns in preset.read(file):
                count += 1
                keep = {SUITE: name, KEY: key, **columns}
                line: dict[str, Any] = {"custom_id": f"{name}/{key}", "prompt": prompt}
                line |= {"response_format": preset.format, "keep": keep}
                if (images := n or preset.images) > 1:
                    line["n"] = images
                yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}", _wants(preset)) from error
        except (ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
            lacks = f": prompt {count + 1} has no {error}" if isinstance(error, KeyError) else ""
            raise UsageError(
                f"{file} is no prompt file of {name}{lacks}", _wants(preset)
            ) from error
        if not count:
            raise UsageError(f"{file} holds no prompts of {name}", _wants(preset))


def _wants(preset: Preset) -> str:
    return f"It takes {preset.file}."


def _geneval(file: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_lines(file)):
        row = orjson.loads(line)
        for name in _GENEVAL:
            row[name]  # or its scorer would fail, once all is rendered
        yield f"{number:05d}", _text(row["prompt"]), {ABOUT: line}


def _compbench(file: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_lines(file)):
        yield f"{file.stem}/{number:05d}", line.split("\t")[0], {}


def _parti(file: Path) -> Iterator[Prompt]:
    # Quotation marks are the prompts' own.
    table = csv.DictReader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(table):
        columns = {"category": _text(row["Category"]), "challenge": _text(row["Challenge"])}
        yield f"{number:05d}", _text(row["Prompt"]), columns


def _drawbench(file: Path) -> Iterator[Prompt]:
    if file.suffix == ".json":  # of HPSv2, whose scorer scores DrawBench
        yield from _listed(file, "")
        return
    for number, row in enumerate(_table(file)):
        yield f"{number:05d}", _text(row["Prompts"]), {"category": _text(row["Category"])}


def _hpsv2(file: Path) -> Iterator[Prompt]:
    return _listed(file, f"{file.stem}/")


def _dpg(file: Path) -> Iterator[Prompt]:
    if file.is_dir():
        for path in sorted(file.glob("*.txt")):
            yield path.stem, path.read_text("utf-8").strip(), {}
        return
    seen = set[str]()
    for row in _table(file):  # a row a question
        if row["item_id"] not in seen:
            seen.add(row["item_id"])
            yield row["item_id"], _text(row["text"]), {}


def _listed(file: Path, folder: str) -> Iterator[Prompt]:
    prompts = orjson.loads(file.read_bytes())
    for number, prompt in enumerate(prompts):
        yield f"{folder}{number:05d}", _text(prompt), {}


def _table(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8-sig").splitlines() if line.strip()]


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


PRESETS: Mapping[SuiteName, Preset] = {
    "geneval": Preset("prompts/evaluation_metadata.jsonl", _geneval, 4, "png"),
    "t2i-compbench": Preset("examples/dataset/*_val.txt", _compbench, 10, "png"),
    "parti": Preset("PartiPrompts.tsv", _parti, 1, "png"),
    "drawbench": Preset(
        "DrawBench's table as .csv (Prompts, Category), or HPSv2's drawbench.json", _drawbench, 1,
        "jpeg",
    ),
    "hpsv2": Preset("anime.json, concept-art.json, paintings.json, photo.json", _hpsv2, 1, "jpeg"),
    "dpg": Preset("dpg_bench/prompts or dpg_bench.csv", _dpg, 4, "png"),
}  # fmt: skip
