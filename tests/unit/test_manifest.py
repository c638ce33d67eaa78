"""Every way in which a manifest can be wrong is named by line, field and reason."""

import gzip
import json
import os
from pathlib import Path

import pytest

from jobs.errors import LineError, UsageError
from jobs.output.plan import SHARD_LINES
from producer.planning.manifest import (
    MAX_LINE,
    BareLine,
    BatchLine,
    manifest_digest,
    parse_line,
    read_blocks,
)
from producer.planning.plain import PlainLine


def errors_of(raw: bytes) -> list[str]:
    parsed = parse_line(7, raw)
    assert isinstance(parsed, list), f"accepted: {parsed}"
    return [str(error) for error in parsed]


def test_a_bare_body_is_a_generation() -> None:
    line = parse_line(1, b'{"prompt": "a cat", "custom_id": "x"}')
    assert isinstance(line, PlainLine)
    assert (line.task, line.custom_id, line.body.prompt) == ("generate", "x", "a cat")


def test_a_bare_body_with_an_image_is_an_edit() -> None:
    line = parse_line(1, b'{"prompt": "a cat", "image": {"image": "https://example.com/a.png"}}')
    assert isinstance(line, BareLine)
    assert line.task == "edit"


def test_a_batch_line_names_its_task_by_url() -> None:
    line = parse_line(
        1,
        b'{"custom_id": "x", "method": "POST", "url": "/v1/images/edits",'
        b' "body": {"prompt": "a", "image": "aGk="}}',
    )
    assert isinstance(line, BatchLine)
    assert line.task == "edit"


def test_a_prompt_that_says_body_is_no_batch_line() -> None:
    line = parse_line(1, b'{"prompt": "body"}')
    assert isinstance(line, BareLine)
    assert line.body.prompt == "body"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{", "line 7: not valid JSON"),
        (b'{"prompt": "\xff"}', "line 7: not valid JSON"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "byte order mark"),
        (b"5\n", "line 7: must be a JSON object"),
        (b'[{"prompt": "a"}]\n', "line 7: must be a JSON object, not an array; one object a line"),
        (b"{\n", "line 7: not valid JSON: an object must stand on one line, as jq -c . FILE"),
        (b'{"prompt": "a"\r\n', "line 7: not valid JSON: Expecting ',' delimiter at column 15"),
        (b'{"promt": "a"}', "line 7: promt: unknown field; did you mean 'prompt'?"),
        (b"{}", "line 7: prompt: is required"),
        (
            b'{"prompt": "a", "keep": {"seed": 1}}',
            "line 7: keep.seed: seed is a column that each dataset has",
        ),
        (b'{"prompt": 5}', "line 7: prompt: input should be a valid string (got 5)"),
        (b'{"prompt": "a", "seed": "5"}', "line 7: seed: input should be a valid integer"),
        (
            b'{"prompt": "a", "seed": true}',
            "line 7: seed: input should be a valid integer (got true)",
        ),
        (b'{"prompt": null}', "line 7: prompt: input should be a valid string (got null)"),
        (
            '{"prompt": {"a": [true, "ü\\u009b"]}}'.encode(),
            r'line 7: prompt: input should be a valid string (got {"a": [true, "ü\x9b"]})',
        ),
        (b'{"prompt": "a", "seed": -1}', "line 7: seed: input should be greater than or equal"),
        (
            b'{"prompt": "a", "guidance_scale": NaN}',
            "line 7: not valid JSON: NaN is no JSON number",
        ),
        (b'{"prompt": "a", "num_inference_steps": 51}', "less than or equal to 50 (got 51)"),
        (b'{"prompt": "a", "response_format": "gif"}', "line 7: response_format: input should be"),
        (b'{"prompt": "a", "controlnet_weights": [2]}', "line 7: controlnet_weights[0]: "),
        (
            b'{"custom_id": "x", "method": "POST", "url": "/v1/images/generations",'
            b' "body": {"prompt": "a", "stepz": 4}}',
            "line 7: body.stepz: unknown field",
        ),
        (
            b'{"custom_id": "x", "method": "GET", "url": "/v1/images/generations",'
            b' "body": {"prompt": "a"}}',
            "line 7: method: input should be 'POST' (got \"GET\")",
        ),
    ],
)
def test_a_wrong_line_is_refused_with_its_reason(raw: bytes, expected: str) -> None:
    assert any(expected in error for error in errors_of(raw)), errors_of(raw)


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("steps", "'num_inference_steps'"),
        ("size", "'width' and 'height'"),
        ("Caption", "'prompt'"),
        ("id", "'custom_id'"),
        ("num_images", "'n'"),
        ("cfg", "'guidance_scale'"),
        ("Seed", "'seed'"),
    ],
)
def test_names_of_other_tools_are_known(field: str, meant: str) -> None:
    (error,) = errors_of(f'{{"prompt": "a", "{field}": 1}}'.encode())
    assert error == f"line 7: {field}: unknown field; did you mean {meant}?"


def test_a_body_is_not_told_a_field_that_it_has_not() -> None:
    line = b'{"custom_id": "x", "method": "POST", "url": "/v1/images/generations", "body": %s}'
    (error,) = errors_of(line % b'{"prompt": "a", "id": "x"}')
    assert "custom_id" not in error


def test_all_reasons_of_a_line_are_given() -> None:
    assert len(errors_of(b'{"seed": "5", "widht": 64, "num_inference_steps": 0}')) == 4


def read_all(
    path: Path, limit: int | None = None, max_line: int = MAX_LINE
) -> tuple[list[tuple[int, bytes]], list[LineError]]:
    blocks = list(read_blocks(str(path), limit, max_line=max_line))
    return [line for b in blocks for line in b.numbered()], [e for b in blocks for e in b.errors]


def test_blocks_keep_line_numbers_and_skip_blank_lines(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b'{"prompt": "a"}\n\n  \n{"prompt": "b"}')
    lines, errors = read_all(manifest)
    assert [number for number, _ in lines] == [1, 4]
    assert errors == []


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_one_error_however_it_is_written(tmp_path: Path, indent: int | None) -> None:
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps([{"prompt": f"{i}"} for i in range(300)], indent=indent))
    lines, errors = read_all(manifest)
    assert lines == []
    assert [(one.line, "jq -c '.[]' FILE" in one.reason) for one in errors] == [(1, True)]


def test_gzip_and_limit(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl.gz"
    manifest.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 10))
    assert len(read_all(manifest)[0]) == 10
    assert len(read_all(manifest, limit=3)[0]) == 3


def test_blocks_are_as_long_as_shards(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b'{"prompt": "a"}\n' * (SHARD_LINES + 1))
    assert [len(block.lines) for block in read_blocks(str(manifest))] == [SHARD_LINES, 1]


def test_blocks_of_long_lines_are_short(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b'{"prompt": "%s"}\n' % (b"a" * 60) * 5)
    assert [len(b.lines) for b in read_blocks(str(manifest), block_bytes=100)] == [2, 2, 1]


def test_a_50_mib_image_fits_in_a_line() -> None:
    assert MAX_LINE > 50 * 2**20 * 4 / 3


def test_an_over_long_line_is_an_error_and_the_next_one_is_read(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b"x" * 3000 + b'\n{"prompt": "b"}\n')
    lines, errors = read_all(manifest, max_line=1000)
    assert [number for number, _ in lines] == [2]
    assert [str(error) for error in errors] == ["line 1: is longer than 1000 bytes"]


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.jsonl does not exist"):
        read_all(tmp_path / "missing.jsonl")


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        read_all(tmp_path)


def test_standard_input_is_no_manifest() -> None:
    with pytest.raises(UsageError, match="standard input"):
        manifest_digest("-")


def test_a_torn_gzip_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "torn.jsonl.gz"
    manifest.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])
    with pytest.raises(UsageError, match=r"torn\.jsonl\.gz cannot be read"):
        read_all(manifest)


@pytest.mark.parametrize("name", ["m.jsonl.gz", "m.jsonl.xz", "m.jsonl.bz2", "m.jsonl.zip"])
def test_what_is_not_compressed_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(UsageError, match=f"{name} cannot be read"):
        read_all(tmp_path / name)


def test_nothing_is_waited_for_that_never_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="it is a pipe or a device"):
            read_all(endless)
