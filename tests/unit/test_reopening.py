"""Images that are gone from a finished run's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.storage import open_storage
from producer.planning.reopening import gone_images
from tests.datasets import make_dataset


def test_images_that_somebody_has_removed_are_known(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    keep = {"file_name": "images/00000/" + "0" * 32 + ".jpg"}  # a column within one
    rows = make_dataset(storage.uri, 4, {1: {"keep": keep}})
    assert gone_images(storage) == frozenset()
    for number in (1, 3):
        (tmp_path / rows[number]["file_name"]).unlink()
    (tmp_path / "images" / "stray.jpg").touch()
    assert gone_images(storage) == {rows[1]["file_name"], rows[3]["file_name"]}
    storage.remove("images")
    assert len(gone_images(storage)) == 4


def test_an_object_store_is_not_listed(tmp_path: Path) -> None:
    storage = open_storage(f"memory://{tmp_path}")
    rows = make_dataset(storage.uri, 2)
    storage.remove(rows[0]["file_name"])
    assert gone_images(storage) == frozenset()


def test_a_dataset_of_others_is_told(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    make_dataset(storage.uri, 1)
    storage.write(layout.METADATA, b"{}\n")
    with pytest.raises(FatalError, match=r"metadata\.jsonl holds what imagemill did not write"):
        gone_images(storage)
    storage.remove(layout.METADATA)
    assert gone_images(storage) == frozenset()
