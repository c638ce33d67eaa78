"""Commands that look: plan, models, verify, sheet, help."""

from __future__ import annotations

import gzip
import tomllib
from hashlib import sha256
from typing import Any

import orjson
import pytest
from PIL import Image
from typer.main import get_command

from jobs.marks import stripped
from producer.cli import make_cli
from tests.support import Cli, circles, rows

HEAD = """
default = "null"
[models.null]
repo = "null:"
takes = ["generate"]
size = [64, 64]
steps = 8
"""


def test_plan_counts_and_enqueues_nothing(cli: Cli) -> None:
    small = [{"prompt": f"{i}", "num_inference_steps": 4} for i in range(3)]
    found = cli.json("plan", cli.manifest(*circles(5), *small))
    assert found["requests"] == 8
    assert sorted((g["steps"], g["images"], g["device"]) for g in found["groups"]) == [
        (4, 3, ""),
        (8, 5, ""),
    ]
    shown = cli("plan", "manifest.jsonl").stdout.splitlines()[-1]
    assert shown.endswith(" on one device (a guess), once its models are loaded")
    assert {path.name for path in cli.folder.iterdir()} <= {"manifest.jsonl", "cache"}


def test_plan_tells_lines_with_a_guidance_each_as_the_one_kind_of_calls_that_they_make(
    cli: Cli,
) -> None:
    lines = [{"prompt": f"{i}", "guidance_scale": 1.5 + i / 8} for i in range(30)]
    manifest = cli.manifest(*lines, {"prompt": "as the model has it"}, {"prompt": "b"})
    (group,) = cli.json("plan", manifest)["groups"]
    assert (group["images"], group["guidance_scale"]) == (32, [1.5, 5.125])
    header, *kinds, _ = cli("plan", manifest).stdout.splitlines()
    assert "guidance" in header
    assert len(kinds) == 1
    assert "1.5 to 5.125" in kinds[0]


def test_plan_shows_the_kinds_with_most_images_and_counts_the_others(cli: Cli) -> None:
    lines = [{"prompt": "a", "width": 16 * (1 + i)} for i in range(50)]
    manifest = cli.manifest(*lines, {"prompt": "b", "width": 800})
    _, *kinds, others, _ = cli("plan", manifest, "--model", "null").stdout.splitlines()
    assert len(kinds) == 20
    assert kinds[0].split()[:4] == ["null", "800", "x", "64"]
    assert others.split()[:3] == ["30", "others", "30"]
    assert len(cli.json("plan", manifest, "--model", "null")["groups"]) == 50


def test_plan_knows_measured_rates(cli: Cli) -> None:
    manifest = cli.manifest(*circles(5))
    cli("run", manifest, "--out", "out", "--model", "null")
    (group,) = cli.json("plan", manifest, "--model", "null")["groups"]
    assert group["device"] == "none"  # the null renderer's
    assert group["seconds"] > 0


def test_plan_lists_invalid_lines(cli: Cli) -> None:
    found = cli.json("plan", cli.manifest({"prompt": "fine"}, {"prompt": 1}), code=2)
    assert (found["requests"], found["invalid"]) == (1, 1)
    assert found["errors"][0]["line"] == 2


def test_plan_lists_the_first_errors_for_people_and_all_for_programs(cli: Cli) -> None:
    wrong = [{"prompt": 1, "sed": 2}] * 15
    manifest = cli.manifest({"prompt": "a"}, {"prompt": "a"}, *wrong)
    shown = cli("plan", manifest, code=2).stdout
    assert "16 invalid lines:\n  line 2: repeats" in shown
    assert (shown.count("prompt:"), shown.count("sed:")) == (10, 9)
    assert shown.endswith("… and 11 more: --json lists them\n")
    found = cli.json("plan", manifest, code=2)
    assert (found["invalid"], found["reasons"]) == (16, 31)
    assert [one["line"] for one in found["errors"]] == sorted([2, *range(3, 18), *range(3, 18)])


def test_plan_warns_of_what_may_not_be_meant(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "a {{ color }} cat"}, {"prompt": ""})
    shown = cli("plan", manifest).stdout
    assert "2 warnings:\n  line 1: prompt: nothing fills {{ color }}" in shown
    found = cli.json("plan", manifest)
    assert (found["invalid"], found["doubtful"]) == (0, 2)
    assert [one["line"] for one in found["warnings"]] == [1, 2]


@pytest.mark.parametrize("name", ["empty.csv", "torn.jsonl.gz"])
def test_a_manifest_that_cannot_be_read_is_refused(cli: Cli, name: str) -> None:
    torn = gzip.compress(b'{"prompt": "a"}\n' * 99)[:-9]
    (cli.folder / name).write_bytes(torn if name.endswith(".gz") else b"")
    assert "cannot be read" in cli("run", name, "--out", "out", "--model", "null", code=2).stderr
    assert not (cli.folder / "out").exists()


def test_plan_refuses_what_run_would(cli: Cli) -> None:
    manifest = cli.manifest({"prompt": "fine"}, {"prompt": 1})
    largest = ("--seed", 2**64 - 1)
    assert "1 invalid line, left out:" in cli("plan", manifest, "--skip-invalid", *largest).stdout
    for wrong in (2**64, -1, "1.5"):
        assert "2⁶⁴−1" in cli("plan", manifest, "--seed", wrong, code=2).stderr
    none_left = cli.manifest({"prompt": 1})
    assert "1 invalid line:" in cli("plan", none_left, "--skip-invalid", code=2).stdout


def test_a_name_of_the_table_is_inspected_as_its_repository(cli: Cli) -> None:
    row: Any = tomllib.loads(cli("models", "inspect", "shapes").stdout)["models"]["shapes"]
    assert (row["family"], row["size"]) == ("stable-diffusion", [64, 64])
    assert "dtype" not in row


def test_models_are_listed(cli: Cli) -> None:
    table = cli.json("models")
    assert table["default"] == "shapes"
    assert "generate" in table["models"]["shapes"]["takes"]
    assert "Lines that name no model get shapes." in cli("models").stdout


def test_verify_tells_equal_from_changed(cli: Cli) -> None:
    lines = [*circles(6), {"prompt": "without a custom_id", "negative_prompt": ""}]
    cli("run", cli.manifest(*lines), "--out", "out", "--model", "null", "--format", "png")
    verdict = cli.json("verify", "out", "--sample", "5")
    assert verdict == {"compared": 5, "differences": []}

    metadata = cli.folder / "out" / "metadata.jsonl"
    changed = [row | {"sha256": "0" * 64} for row in rows(metadata)]
    changed[0]["batch_width"] = 64
    metadata.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in changed))
    verdict = cli.json("verify", "out", "--sample", "7", code=1)
    assert verdict["compared"] == 7
    assert [difference["stack"] for difference in verdict["differences"]] == [
        {"batch_width": ["64", "16"]},
        *[{}] * 6,
    ]


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_verify_of_images_from_before_there_were_marks(cli: Cli, kind: str) -> None:
    cli("run", cli.manifest(*circles(4)), "--out", "out", "--model", "null", "--format", kind)
    metadata = cli.folder / "out" / "metadata.jsonl"
    before = rows(metadata)
    for row in before:
        assert row.pop("mark") == "xmp"
        image = cli.folder / "out" / row["file_name"]
        image.write_bytes(stripped(image.read_bytes()))
        row["sha256"] = sha256(image.read_bytes()).hexdigest()
    metadata.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in before))
    assert cli.json("verify", "out") == {"compared": 4, "differences": []}


def test_a_model_may_leave_the_mark_out(cli: Cli) -> None:
    table = cli.folder / "models.toml"
    for name, option in (("marked", ""), ("plain", "[models.null.options]\nmark = false\n")):
        table.write_text(HEAD + option)
        cli("run", cli.manifest(*circles(2)), "--out", name, "--models-file", "models.toml")
    marked, plain = (rows(cli.folder / name / "metadata.jsonl") for name in ("marked", "plain"))
    assert [row["mark"] for row in (*marked, *plain)] == ["xmp", "xmp", "", ""]
    assert {row["job_id"] for row in marked}.isdisjoint({row["job_id"] for row in plain})
    for one, other in zip(marked, plain, strict=True):
        data = (cli.folder / "marked" / one["file_name"]).read_bytes()
        assert stripped(data) == (cli.folder / "plain" / other["file_name"]).read_bytes()


def test_verify_of_the_demo_model(cli: Cli) -> None:
    cli("run", cli.manifest(*circles(6)), "--out", "out")
    assert "2 of 2 images have the same bytes" in cli("verify", "out", "--sample", "2").stdout


def test_sheet_lies_beside_the_dataset(cli: Cli) -> None:
    cli("run", cli.manifest(*circles(7)), "--out", "out", "--model", "null")
    path = cli("sheet", "out", "--images", "5").stdout.strip()
    assert path == str(cli.folder / "out-sheet.png")
    with Image.open(path) as sheet:
        assert sheet.width > sheet.height > 200
    assert "inside the dataset" in cli("sheet", "out", "--to", "out/sheet.png", code=2).stderr
    cli("sheet", "out", "--to", "elsewhere.png")
    assert (cli.folder / "elsewhere.png").exists()


def test_a_sheet_shows_the_whole_dataset_and_names_an_image_that_is_damaged(cli: Cli) -> None:
    cli("run", cli.manifest(*circles(7)), "--out", "out", "--model", "null")
    image = cli.folder / "out" / rows(cli.folder / "out" / "metadata.jsonl")[5]["file_name"]
    image.write_bytes(image.read_bytes()[:-9])
    cli("sheet", "out", "--images", "1")
    damaged = cli("sheet", "out", "--images", "4", code=1).stderr
    assert f"{image}: the image file is damaged" in damaged
    assert "imagemill fsck out finds all such images" in damaged
    image.unlink()
    assert f"{image}: is gone" in cli("sheet", "out", code=1).stderr


@pytest.mark.parametrize("command", ["verify", "sheet"])
def test_absent_dataset(cli: Cli, command: str) -> None:
    assert "nothing is no output of a run" in cli(command, "nothing", code=2).stderr


@pytest.mark.parametrize("command", sorted(get_command(make_cli()).commands))
def test_every_command_has_help(cli: Cli, command: str) -> None:
    assert f"Usage: imagemill {command}" in cli(command, "--help").stdout


def test_help_loads_nothing_heavy(cli: Cli) -> None:
    loaded = cli.imports("--help")
    assert not {"torch", "diffusers", "celery", "redis", "fsspec", "pyarrow", "worker"} & loaded


def test_tune_measures_the_demo_model(cli: Cli) -> None:
    done = cli("models", "tune", "shapes", "--most", "2", "--seconds", "0.1", "--devices", "cpu")
    row: Any = tomllib.loads(done.stdout)["models"]["shapes"]
    assert row["batch_width"] in (1, 2)
    assert 0 < row["seconds_per_image"] < 60
    assert [line.split()[:3] for line in done.stderr.splitlines() if "a call" in line] == [
        ["1", "a", "call:"], ["2", "a", "call:"],
    ]  # fmt: skip
    refused = cli("models", "tune", "shape", code=2).stderr
    assert "unknown model 'shape'; known: null, shapes" in refused


@pytest.mark.parametrize(
    "command",
    [
        ("score", "nothing", "--with", "statistics"),
        ("models", "tune", "shape"),
        ("models", "fetch", "shape"),
        ("check-determinism", "shape"),
    ],
)
def test_commands_of_the_device_side_end_as_all_others_do(
    cli: Cli, command: tuple[str, ...]
) -> None:
    refused = cli(*command, code=2).stderr
    assert refused.startswith("Error: ")
    assert "Traceback" not in refused
