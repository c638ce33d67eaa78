"""Tables are manifests: each row is a line, whatever the file's form."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow as pa
import pytest
from pyarrow import csv, feather, ipc, parquet

from jobs.errors import UsageError
from jobs.models.table import load_models
from jobs.requests import MAX_PROMPT
from producer.planning import tables
from producer.planning.blocks import plan_blocks
from producer.planning.manifest import parse_line, read_blocks
from producer.planning.plain import PlainLine
from producer.planning.resolution import PlanOptions
from producer.planning.tables import columns_of, kept_columns

COLUMNS = {"prompt": "caption", "custom_id": "id", "n": "n"}


def lines(uri: str, columns: dict[str, str] = COLUMNS) -> list[object]:
    return [
        orjson.loads(raw)
        for block in read_blocks(uri, columns=columns)
        for _, raw in block.numbered()
    ]


@pytest.fixture(autouse=True)
def _tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = pa.table(
        {
            "id": [1, 2, 3],
            "caption": ["a, b", 'c\n"d"', "42"],
            "seed": pa.array([1, 2**64 - 1, None], pa.uint64()),
            "guidance_scale": [1.5, None, 3],
            "n": [None, 2, None],
            "else": ["x", "y", "z"],
        }
    )
    parquet.write_table(table, "m.parquet", row_group_size=2)
    with ipc.new_stream("stream.arrow", table.schema) as stream:
        stream.write_table(table)
    with ipc.new_file("file.arrow", table.schema) as file:
        file.write_table(table)
    csv.write_csv(table, "m.csv")
    csv.write_csv(table, "m.tsv", csv.WriteOptions(delimiter="\t"))
    Path("m.txt").write_text("a, b\n\n  c\r\n" + "x" * (9 * MAX_PROMPT) + "\nd")


@pytest.mark.parametrize("name", ["other.parquet", "other.csv"])
def test_only_what_a_request_has_is_taken_by_name(name: str) -> None:
    """Not what says how many images there are, whose names are anybody's; nor a whole picture."""
    table = pa.table(
        {
            "prompt": ["a"], "seed": [7], "n": [900], "min": [0.5], "max": [2], "by": ["me"],
            "best_of": [3], "max_tries": [9], "sweep": ["x"], "keep": ["y"], "slots": [4],
        }
    )  # fmt: skip
    if name.endswith(".csv"):
        csv.write_csv(table, name)
    else:
        picture = pa.array([{"bytes": b"GIF", "path": "a.gif"}])
        parquet.write_table(table.append_column("image", picture), name)
    assert lines(name, {}) == [{"prompt": "a", "seed": 7}]
    asked = {one: one for one in ("n", "by", "best_of")}
    assert lines(name, asked) == [{"prompt": "a", "seed": 7, "n": 900, "by": "me", "best_of": 3}]


@pytest.mark.parametrize("name", ["m.parquet", "stream.arrow", "file.arrow", "m.csv", "m.tsv"])
def test_rows_are_lines(name: str) -> None:
    assert lines(name) == [
        {"custom_id": "1", "prompt": "a, b", "seed": 1, "guidance_scale": 1.5},
        {"custom_id": "2", "prompt": 'c\n"d"', "seed": 2**64 - 1, "n": 2},
        {"custom_id": "3", "prompt": "42", "guidance_scale": 3.0},
    ]
    options = PlanOptions(model="null", columns=tuple(COLUMNS.items()))
    (block,) = plan_blocks(name, load_models(), options, {"null": "n"})
    assert (block.errors, block.requests) == ([], 4)


@pytest.mark.parametrize("name", ["twice.parquet", "twice.arrow", "twice.csv"])
def test_a_column_that_a_table_has_twice_is_refused_where_it_is_used(name: str) -> None:
    cells = [pa.array([one]) for one in ("a", "b", "c", "d", 1)]
    table = pa.table(cells, names=["prompt", "seed", "label", "label", "n"])
    write = {"parquet": parquet.write_table, "arrow": feather.write_feather, "csv": csv.write_csv}
    write[name.rpartition(".")[2]](table, name)
    assert lines(name, {}) == [{"prompt": "a", "seed": "b"}]
    with pytest.raises(UsageError, match=f"{name} has several columns 'label'"):
        lines(name, {"negative_prompt": "label"})
    with pytest.raises(UsageError, match=f"{name} has several columns 'label'"):
        list(read_blocks(name, keep=["label"]))


@pytest.mark.parametrize("name", ["gaps.parquet", "gaps.csv"])
def test_whole_numbers_may_be_written_as_floats_as_columns_with_gaps_are(name: str) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b", "c", "d"],
            "seed": [1.0, None, 2.0**53, 2.0**60],
            "width": [64.0, float("nan"), 64.5, None],
            "count": [2.0, 1.0, None, None],
        }
    )
    if name.endswith(".csv"):
        text = "prompt,seed,width,count\na,1.0,64.0,2.0\nb,,,1.0\nc,9007199254740992.0,64.5,\n"
        Path(name).write_text(f"{text}d,{2**60}.0,,\n")
    else:
        parquet.write_table(table, name)
    options = PlanOptions(model="null", columns=(("n", "count"),))
    (block,) = plan_blocks(name, load_models(), options, {"null": "n"})
    assert lines(name, {"n": "count"})[:2] == [
        {"prompt": "a", "seed": 1, "width": 64, "n": 2},
        {"prompt": "b", "n": 1},
    ]
    assert block.requests == 3
    assert [(error.line, error.field) for error in block.errors] == [(3, "width"), (4, "seed")]


def test_infinities_are_refused_and_nan_is_an_empty_cell() -> None:
    numbers = pa.array([1.0, float("nan"), float("inf"), float("-inf")])
    table = pa.table(
        {
            "prompt": ["a", "b", "c", "d"], "guidance_scale": numbers, "seed": numbers,
            "score": numbers, "often": numbers.dictionary_encode(),
        }
    )  # fmt: skip
    parquet.write_table(table, "endless.parquet")
    options = PlanOptions(model="null", keep=("score", "often"))
    (block,) = plan_blocks("endless.parquet", load_models(), options, {"null": "n"})
    assert block.requests == 2
    found = {(error.line, error.field, error.reason.rpartition("(")[2]) for error in block.errors}
    names = ("guidance_scale", "seed", "keep.score", "keep.often")
    assert found == {(3, n, "got inf)") for n in names} | {(4, n, "got -inf)") for n in names}


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_cell_that_is_no_number_costs_its_row_alone(delimiter: str) -> None:
    name = "cells.csv" if delimiter == "," else "cells.tsv"
    rows = [
        "prompt,width,seed,guidance_scale", "a, 64,007,1e1", "b,sixty,1,2", "c,64,-1,nan",
        "d,,99999999999999999999,0x10", f"e,1_0,{2**64 - 1},.5", '"f\n",1e400,,',
    ]  # fmt: skip
    Path(name).write_text("\n".join(rows).replace(",", delimiter))
    options = PlanOptions(model="null")
    (block,) = plan_blocks(name, load_models(), options, {"null": "n"})
    assert block.requests == 1
    assert {(error.line, error.field) for error in block.errors} == {
        (2, "width"), (3, "seed"), (3, "guidance_scale"), (4, "seed"), (4, "guidance_scale"),
        (5, "width"), (6, "width"),
    }  # fmt: skip
    assert str(block.errors[0]).startswith("line 2: width: input should be a valid integer (got")
    assert lines(name, {})[0] == {"prompt": "a", "width": 64, "seed": 7, "guidance_scale": 10.0}


@pytest.mark.parametrize("name", ["m.parquet", "stream.arrow", "file.arrow", "m.csv", "m.tsv"])
def test_columns_to_keep_are_told_apart(name: str) -> None:
    typed = not name.endswith("sv")
    blocks = read_blocks(name, columns={"prompt": "caption"}, keep=["else", "id", "guidance_scale"])
    found = [orjson.loads(raw) for block in blocks for _, raw in block.numbered()]
    assert [line["keep"]["else"] for line in found] == ["x", "y", "z"]
    assert [line["keep"]["id"] for line in found] == ([1, 2, 3] if typed else ["1", "2", "3"])
    assert ["guidance_scale" in line["keep"] for line in found] == [True, False, True]
    assert all("custom_id" not in line and "else" not in line for line in found)


def test_cells_that_are_kept_are_texts_truths_and_numbers() -> None:
    table = pa.table(
        {
            "prompt": pa.array(["a", "b", "", "d"]).dictionary_encode(),
            "when": pa.array([1_577_836_800_000_000_999, None, 0, None], pa.timestamp("ns", "UTC")),
            "good": [True, False, None, None],
            "score": [0.5, float("nan"), 1.0, None],
            'a column: "x"': ["a: b", 'c\n"d"', "", None],
        }
    )
    parquet.write_table(table, "kept.parquet")
    keep = ["when", "good", "score", 'a column: "x"']
    (block,) = read_blocks("kept.parquet", keep=keep)
    assert [orjson.loads(raw) for _, raw in block.numbered()] == [
        {
            "prompt": "a",
            "keep": {
                "when": "2020-01-01T00:00:00Z", "good": True, "score": 0.5,
                'a column: "x"': "a: b",
            },
        },
        {"prompt": "b", "keep": {"good": False, 'a column: "x"': 'c\n"d"'}},
        {"prompt": "d"},
    ]  # fmt: skip
    assert [number for number, _ in block.numbered()] == [1, 2, 4]
    assert all(isinstance(parse_line(1, raw), PlainLine) for _, raw in block.numbered())


def test_what_cannot_be_kept_is_named() -> None:
    table = pa.table({"prompt": ["a"], "raw": [b"x"], "tags": [["a"]]})
    parquet.write_table(table, "odd.parquet")
    Path("m.jsonl").write_text('{"prompt": "a"}')
    for uri, column, reason in (
        ("odd.parquet", "raw", "column 'raw' of odd.parquet holds binary"),
        ("odd.parquet", "tags", "holds list"),
        ("odd.parquet", "absent", "has no column 'absent'"),
        ("m.txt", "prompt", "has no columns"),
        ("m.jsonl", "label", '"keep"'),
    ):
        with pytest.raises(UsageError, match=reason):
            list(read_blocks(uri, keep=[column]))
    for uri, reason in (("m.jsonl", "--map names columns of tables"), ("m.txt", "has no columns")):
        with pytest.raises(UsageError, match=reason):
            list(read_blocks(uri, columns={"prompt": "a"}))
    for name in ("seed", "image", "x" * 65, "a\nb", ""):
        with pytest.raises(UsageError, match="--keep"):
            kept_columns([name])


def test_lines_of_text_are_prompts_and_one_that_is_too_long_is_refused() -> None:
    (block,) = plan_blocks("m.txt", load_models(), PlanOptions(model="null"), {"null": "n"})
    assert [(error.line, error.field) for error in block.errors] == [(4, "prompt")]
    assert [number for number, _ in next(read_blocks("m.txt")).numbered()] == [1, 3, 4, 5]
    assert block.requests == 3


@pytest.mark.parametrize(
    ("name", "content", "columns", "reason"),
    [
        ("m.csv", None, {}, "no column of m.csv is called prompt"),
        ("m.csv", None, {"prompt": "text"}, "m.csv has no column 'text'"),
        ("c.csv", "id,Caption\n1,a\n", {}, "Name one: --map prompt=Caption"),
        ("c.csv", "Caption\na\n", {"prompt": "captoin"}, "did you mean 'Caption'"),
        ("bad.parquet", "x", {}, "bad.parquet cannot be read: Parquet file size is"),
        ("empty.parquet", "", {}, "empty.parquet cannot be read: Parquet file size is 0"),
        ("empty.csv", "", {}, "empty.csv cannot be read: Empty CSV file"),
        ("bad.arrow", "x", {}, "bad.arrow cannot be read"),
        (
            "latin.csv",
            b"prompt\na\n\xfc\n",
            {},
            "row 2: CSV conversion error to string",
        ),
        ("bad.txt", b"\xff\n", {}, "bad.txt cannot be read"),
        ("none.csv", None, {}, "none.csv does not exist"),
    ],
)
def test_what_is_no_table_is_named(
    name: str,
    content: str | bytes | None,
    columns: dict[str, str],
    reason: str,
) -> None:
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=reason):
        lines(name, columns)


@pytest.mark.parametrize(("end", "last"), [("\n", []), ("\n\nlast,d,e\n", [10_005])])
def test_a_row_with_other_cells_than_the_header_is_refused_alone(end: str, last: list[int]) -> None:
    good = [f"d{i},{i}" for i in range(9999)]
    rows = ["prompt,seed", "a,1", '"two\nlines",2', "b,c,3", "", "alone", *good]
    rows.insert(6000, "a cat, a dog, 7")
    Path("odd.csv").write_text("\n".join(rows) + end)
    blocks = list(plan_blocks("odd.csv", load_models(), PlanOptions(model="null"), {"null": "n"}))
    errors = [error for block in blocks for error in block.errors]
    assert [error.line for error in errors] == [3, 4, 5999, *last]
    assert errors[0].reason == "has 3 cells, the header 2; a text with ',' in it stands in quotes"
    assert sum(block.requests for block in blocks) == 10_001
    found = [raw for block in read_blocks("odd.csv") for _, raw in block.numbered()]
    prompts = [orjson.loads(raw)["prompt"] for raw in found]
    assert prompts == ["a", "two\nlines", *(f"d{i}" for i in range(9999))]


def test_a_table_of_rows_that_are_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept until one comes that is a line, which no small file may make large."""
    monkeypatch.setattr(tables, "MAX_UNFIT", 3)
    header, good, odd = "prompt,seed\n", "a,1\n" * 800_000, "b,c,2\n"  # good: several reads
    Path("odd.csv").write_text(header + 3 * odd + good + 3 * odd)
    assert len(lines("odd.csv", {})) == 800_000
    Path("odd.csv").write_text(header + 4 * odd + good)
    with pytest.raises(UsageError, match="row 4: Expected 2 columns, got 3"):
        lines("odd.csv", {})


def test_columns_are_named_once_and_stand_for_fields() -> None:
    assert columns_of(["prompt=a=b", "custom_id=id"]) == (("custom_id", "id"), ("prompt", "a=b"))
    for wrong in (["prompt"], ["prompt="], ["promt=a"], ["prompt=a", "prompt=b"]):
        with pytest.raises(UsageError, match=wrong[-1]):
            columns_of(wrong)
