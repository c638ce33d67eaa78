"""imagemill diff: what two datasets have in common, and by how much the rest differs."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.errors import FatalError, UsageError
from jobs.output.records import Row
from jobs.output.storage import open_storage
from producer.cli import make_cli
from producer.upkeep.comparison import Comparison, compare
from tests.datasets import make_dataset, write_rows


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    return str(tmp_path / "one"), str(tmp_path / "two")


def compared(places: tuple[str, str]) -> Comparison:
    return compare(*places, lambda *_: None)


def replace_image(out: str, row: Row, image: Image.Image) -> Row:
    """Another image for a request of a dataset, and its row."""
    data = BytesIO()
    image.save(data, "PNG")
    open_storage(out).write(row["file_name"], data.getvalue())
    return {**row, "sha256": sha256(data.getvalue()).hexdigest()}


def test_a_dataset_equals_itself(places: tuple[str, str]) -> None:
    make_dataset(places[0], 5)
    make_dataset(places[1], 5, {2: {"seconds_render": 9.0, "worker": "another"}})
    assert compared(places) == Comparison(common=5, equal=5)


def test_pixels_and_columns_that_differ(places: tuple[str, str]) -> None:
    png = {number: {"response_format": "png"} for number in range(6)}
    make_dataset(places[0], 6, png)
    rows = make_dataset(places[1], 8, png)
    rows[1] = replace_image(places[1], rows[1], Image.new("RGB", (8, 8), (2, 0, 0)))
    far = Image.new("RGB", (8, 8), (2, 0, 0))
    far.putpixel((0, 0), (2, 0, 200))
    rows[2] = replace_image(places[1], rows[2], far)
    rows[3] = replace_image(places[1], rows[3], Image.new("RGB", (8, 4)))
    write_rows(places[1], [{**row, "threads": 4} for row in rows])  # type: ignore[misc]
    Path(places[0], rows[4]["file_name"]).unlink()  # equal by its record: that is for fsck
    found = compared(places)
    assert (found.common, found.only_first, found.only_second) == (6, 0, 2)
    assert (found.equal, found.changed, found.close, found.incomparable) == (3, 3, 1, 1)
    assert found.largest == 200
    assert found.mean == pytest.approx((1 / 3 + 200 / 192) / 2)
    assert [change.custom_id for change in found.worst] == ["row-3", "row-2", "row-1"]
    assert found.worst[0].problem == "8 x 8 against 8 x 4"
    assert {name: (c.requests, c.first, c.second) for name, c in found.columns.items()} == {
        "threads": (6, "1", "4")
    }


def test_another_model_s_images_are_matched_by_custom_id(places: tuple[str, str]) -> None:
    make_dataset(places[0], 4)
    rows = make_dataset(places[1], 4)
    for number, row in enumerate(rows):
        row["job_id"], row["model"] = f"{number + 100:032x}", "other"
    rows[3]["custom_id"] = ""
    write_rows(places[1], rows)
    found = compared(places)
    assert (found.common, found.equal, found.only_first, found.only_second) == (3, 3, 1, 1)
    assert found.columns["model"].requests == 3


@pytest.mark.parametrize("damage", ["missing", "no image"])
def test_images_that_cannot_be_read_are_named(places: tuple[str, str], damage: str) -> None:
    make_dataset(places[0], 2)
    rows = make_dataset(places[1], 2)
    rows[1]["sha256"] = "0" * 64
    write_rows(places[1], rows)
    image = Path(places[1], rows[1]["file_name"])
    image.unlink() if damage == "missing" else image.write_bytes(b"GIF89a")
    found = compared(places)
    assert (found.incomparable, found.changed) == (1, 1)
    assert str(image) in found.worst[0].problem


def test_the_command(places: tuple[str, str]) -> None:
    make_dataset(places[0], 3)
    rows = make_dataset(places[1], 3)
    runner = CliRunner()
    same = runner.invoke(make_cli(), ["diff", *places])
    assert (same.exit_code, same.stdout.splitlines()[-1]) == (
        0,
        "3 images with the same bytes, 0 with others",
    )
    rows[0] = replace_image(places[1], rows[0], Image.new("RGB", (8, 8), (0, 0, 9)))
    write_rows(places[1], rows)
    changed = runner.invoke(make_cli(), ["diff", *places])
    assert changed.exit_code == 1
    assert "differ by 3 of 255 on average and 9 at most; 0 images by no more" in changed.stdout
    assert "(row-0): 3 on average, 9 at most" in changed.stdout


@pytest.mark.parametrize(("counts", "more"), [((2, 3), 1), ((3, 2), 0)])
def test_images_that_only_one_has_are_a_difference(
    places: tuple[str, str], counts: tuple[int, int], more: int
) -> None:
    for place, images in zip(places, counts, strict=True):
        make_dataset(place, images)
    done = CliRunner().invoke(make_cli(), ["diff", *places])
    only = f"{1 - more} only in the first, {more} only in the second"
    assert (done.exit_code, done.stdout.splitlines()) == (
        1,
        [f"2 requests in common, {only}", "2 images with the same bytes, 0 with others"],
    )


def test_nothing_in_common_is_a_difference_and_told(places: tuple[str, str]) -> None:
    make_dataset(places[0], 2)
    rows = make_dataset(places[1], 1)
    rows[0] |= {"job_id": "f" * 32, "custom_id": "another"}
    write_rows(places[1], rows)
    done = CliRunner().invoke(make_cli(), ["diff", *places])
    assert (done.exit_code, done.stdout.splitlines()) == (
        1,
        [
            "0 requests in common, 2 only in the first, 1 only in the second",
            "In common are requests of the same content, or else custom_id, with an image in both",
        ],
    )


def test_what_is_no_dataset_is_refused(places: tuple[str, str]) -> None:
    make_dataset(places[0], 1)
    with pytest.raises(UsageError, match="no output of a run"):
        compared(places)


def test_a_stranger_s_rows_end_nothing(places: tuple[str, str]) -> None:
    make_dataset(places[0], 3)
    write_rows(places[1], [])
    assert compared(places).only_first == 3
    rows = make_dataset(places[1], 3, {0: {"prompt": "\x1b[31m" + "x" * 999}, 1: {"custom_id": []}})
    del rows[2]["sha256"]
    write_rows(places[1], rows)
    found = compared(places)
    assert (found.common, found.equal) == (3, 2)
    assert found.columns["prompt"].second == " [31m" + "x" * 74 + "…"
    write_rows(places[1], [{**rows[0], "status": "failed"}])
    with pytest.raises(FatalError, match="a row without an image"):
        compared(places)
