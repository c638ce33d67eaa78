"""Benchmark suites: their prompt files as manifests, and the layouts that their scorers read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import UsageError
from producer.planning.manifest import BareLine, BareRecipe, parse_line
from producer.planning.plain import PlainLine
from producer.planning.presets import PRESETS, SuiteName, manifest_lines
from producer.upkeep.export.layouts import LaidOut, lay_out
from producer.upkeep.export.selection import parse_condition
from tests.datasets import make_dataset

GENEVAL = (
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"}\n'
    '{"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], '
    '"prompt": "a red car"}\n'
)
PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    'the words "Fly\tArts\tComplex\t\n'
    "bond\tAbstract\tBasic\tWith, a comma\n"
)
DRAWBENCH = 'Prompts,Category\na car,Colors\n"a, b",Text\n'
DPG = "item_id,text,question\np1,long,a?\np1,long,b?\n7,more,c?\n"
FILES: dict[SuiteName, tuple[str, str, list[str]]] = {
    "geneval": ("evaluation_metadata.jsonl", GENEVAL, ["a bench", "a red car"]),
    "t2i-compbench": ("color_val.txt", "a red hat.\na cow\tseen\n", ["a red hat.", "a cow"]),
    "parti": ("PartiPrompts.tsv", PARTI, ['the words "Fly', "bond"]),
    "drawbench": ("drawbench.csv", DRAWBENCH, ["a car", "a, b"]),
    "hpsv2": ("anime.json", '["a cat", "a dog"]', ["a cat", "a dog"]),
    "dpg": ("dpg_bench.csv", DPG, ["long", "more"]),
}


@pytest.mark.parametrize("suite", FILES)
def test_a_suites_file_is_a_manifest(tmp_path: Path, suite: SuiteName) -> None:
    name, content, prompts = FILES[suite]
    file = tmp_path / name
    file.write_text(content)
    lines = []
    for number, raw in enumerate(manifest_lines(suite, [file])):
        line = parse_line(number, raw)
        assert isinstance(line, BareLine | BareRecipe | PlainLine), line
        lines.append(line)
    assert [line.prompt for line in lines] == prompts
    assert len({line.custom_id for line in lines}) == len(lines)
    images = [line.n if isinstance(line, BareRecipe) else 1 for line in lines]
    assert images == [PRESETS[suite].images] * len(lines)


def test_what_is_no_file_of_the_suite_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("a cat\n")
    for suite in ("geneval", "parti", "drawbench", "hpsv2", "dpg"):
        with pytest.raises(UsageError, match=r"holds no prompts|is no prompt file"):
            list(manifest_lines(suite, [other]))
    table = tmp_path / "table.csv"
    for content in ('Prompts,Category\n"' + "a" * 200_000, "Prompts,Category\na cat\n"):
        table.write_text(content)
        with pytest.raises(UsageError, match="is no prompt file of drawbench"):
            list(manifest_lines("drawbench", [table]))
    other.write_text("")
    with pytest.raises(UsageError, match="holds no prompts of t2i"):
        list(manifest_lines("t2i-compbench", [other]))
    with pytest.raises(UsageError, match="No such file"):
        list(manifest_lines("geneval", [tmp_path / "none"]))


@pytest.mark.parametrize(
    ("suite", "content", "lacks"),
    [
        (
            "geneval",
            '{"tag": "a", "include": [], "prompt": "a"}\n{"prompt": "b"}\n',
            "2 has no 'tag'",
        ),
        ("geneval", '{"tag": "colors", "prompt": "a red car"}\n', "1 has no 'include'"),
        ("parti", "Prompt\tCategory\na\tb\n", "1 has no 'Challenge'"),
        ("drawbench", "prompt,Category\na,b\n", "1 has no 'Prompts'"),
        ("dpg", "id,text\n1,a\n", "1 has no 'item_id'"),
    ],
)
def test_a_file_of_another_form_is_told_what_it_lacks(
    tmp_path: Path, suite: SuiteName, content: str, lacks: str
) -> None:
    file = tmp_path / FILES[suite][0]
    file.write_text(content)
    with pytest.raises(UsageError, match=f"no prompt file of {suite}: prompt {lacks}") as refused:
        list(manifest_lines(suite, [file]))
    assert PRESETS[suite].file in refused.value.hint


def test_folders_of_prompts_are_dpgs(tmp_path: Path) -> None:
    for name in ("partiprompts7", "12"):
        (tmp_path / f"{name}.txt").write_text(f"prompt {name}\n")
    lines = [json.loads(raw) for raw in manifest_lines("dpg", [tmp_path], n=1)]
    assert [line["keep"]["suite_key"] for line in lines] == ["12", "partiprompts7"]
    assert lines[0]["prompt"] == "prompt 12"
    assert "n" not in lines[0]


def laid_out(tmp_path: Path, suite: SuiteName, rows: list[dict[str, Any]], n: int = 1) -> LaidOut:
    """A dataset of so many images of each row, laid out."""
    kind = PRESETS[suite].format
    images = [row | {"suite": suite, "response_format": kind} for row in rows for _ in range(n)]
    make_dataset(str(tmp_path / "out"), len(images), dict(enumerate(images)))
    return lay_out(str(tmp_path / "out"), str(tmp_path / "to"), suite, None, lambda *_: None)


def test_geneval_is_laid_out(tmp_path: Path) -> None:
    about = GENEVAL.splitlines()
    rows = [{"suite_key": f"{i:05d}", "suite_metadata": about[i]} for i in range(2)]
    found = laid_out(tmp_path, "geneval", rows, 4)
    assert (found.images, found.prompts, found.written) == (8, 2, 10)
    for number, folder in enumerate(sorted(os.listdir(tmp_path / "to"))):  # as evaluate_images.py
        assert folder.isdigit()
        path = tmp_path / "to" / folder
        assert json.loads((path / "metadata.jsonl").read_text()) == json.loads(about[number])
        names = sorted(os.listdir(path / "samples"))
        assert len(names) == 4
        assert all(re.match(r"\d+\.png", name) for name in names)
    colour = Image.open(tmp_path / "to/00001/samples/0002.png").getpixel((0, 0))
    assert colour == (6, 0, 0)  # the seventh image of all
    again = lay_out(str(tmp_path / "out"), str(tmp_path / "to"), "geneval", None, lambda *_: None)
    assert again.written == 0


def test_compbench_is_laid_out(tmp_path: Path) -> None:
    rows = [
        {"suite_key": "color_val/00000", "prompt": "a red hat. A cow"},
        {"suite_key": "color_val/00001", "prompt": "a cow"},
    ]
    laid_out(tmp_path, "t2i-compbench", rows, 2)
    names = os.listdir(tmp_path / "to/color_val/samples")
    names.sort(key=lambda x: int(x.split("_")[-1].split(".")[0]))  # as BLIP_vqa.py
    assert [name.split("_")[0] for name in names] == ["a red hat. A cow"] * 2 + ["a cow"] * 2
    for prompt in ("../../x", "x" * 250, "a\nb"):
        rows[1]["prompt"] = prompt
        with pytest.raises(UsageError, match="cannot be part of a file's name"):
            laid_out(tmp_path, "t2i-compbench", rows)


def test_hpsv2_is_laid_out(tmp_path: Path) -> None:
    rows = [{"suite_key": f"{style}/{i:05d}"} for style in ("anime", "photo") for i in range(2)]
    assert laid_out(tmp_path, "hpsv2", rows).written == 4
    for style in os.listdir(tmp_path / "to"):  # as evaluation.py
        for number in range(2):
            assert (tmp_path / "to" / style / f"{number:05d}.jpg").is_file()
    with pytest.raises(UsageError, match="scorer reads one"):
        laid_out(tmp_path, "hpsv2", rows[:1], 2)


def test_dpg_is_laid_out(tmp_path: Path) -> None:
    laid_out(tmp_path, "dpg", [{"suite_key": "partiprompts7"}, {"suite_key": "12"}], 4)
    square = Image.open(tmp_path / "to/12.png")
    tiles = [(0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16), (8, 8, 16, 16)]  # as compute_dpg_bench.py
    assert square.size == (16, 16)
    assert [square.crop(tile).getpixel((0, 0)) for tile in tiles] == [
        (4 + i, 0, 0) for i in range(4)
    ]


def test_images_that_make_no_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 images of prompt 12 are no square"):
        laid_out(tmp_path, "dpg", [{"suite_key": "12"}], 3)
    wide = [{"suite_key": "12"}] * 3 + [{"suite_key": "12", "width": 72}]
    with pytest.raises(UsageError, match="are no square"):
        laid_out(tmp_path, "dpg", wide)
    assert not (tmp_path / "to").exists()


def test_a_layout_never_mixes_with_anything_else(tmp_path: Path) -> None:
    rows = [{"suite_key": "color_val/00000", "prompt": "a cow"}]
    laid_out(tmp_path, "t2i-compbench", rows, 2)
    folder = tmp_path / "to/color_val/samples"
    (folder / "a cow_000001.png").write_bytes(b"of another run")
    with pytest.raises(UsageError, match=r"holds another color_val/samples/a cow_000001\.png"):
        laid_out(tmp_path, "t2i-compbench", rows, 2)
    (folder / "a cow_000001.png").unlink()
    assert laid_out(tmp_path, "t2i-compbench", rows, 2).written == 1
    (folder / ".a cow_000001.png.tmp").write_bytes(b"of a command that was killed")
    assert laid_out(tmp_path, "t2i-compbench", rows, 2).written == 0
    with pytest.raises(UsageError, match=r"cow_000001\.png, which is none of these images"):
        laid_out(tmp_path, "t2i-compbench", rows, 1)


def test_what_a_scorer_would_not_find_is_refused(tmp_path: Path) -> None:
    out, to = str(tmp_path / "out"), str(tmp_path / "to")
    make_dataset(out, 1, {0: {"suite": "geneval", "suite_key": "00000"}})
    with pytest.raises(UsageError, match="is no png"):
        lay_out(out, to, "geneval", None, lambda *_: None)
    with pytest.raises(UsageError, match="no images of dpg"):
        lay_out(out, to, "dpg", None, lambda *_: None)
    with pytest.raises(UsageError, match="parti has no scorer"):
        lay_out(out, to, "parti", None, lambda *_: None)
    change = {"suite": "dpg", "suite_key": "../x", "response_format": "png"}
    make_dataset(out, 1, {0: change})
    with pytest.raises(UsageError, match="none of dpg's"):
        lay_out(out, to, "dpg", None, lambda *_: None)
    where = parse_condition('custom_id == "none"')
    with pytest.raises(UsageError, match="no images of dpg"):
        lay_out(out, to, "dpg", where, lambda *_: None)
