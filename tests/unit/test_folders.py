"""Manifests of several files: folders of tables, and patterns."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from datasets import Dataset, DatasetDict

from jobs.errors import UsageError
from producer.planning.folders import files_of
from producer.planning.manifest import manifest_digest, read_blocks

ROWS = Dataset.from_dict({"caption": [f"a red circle {i}" for i in range(10)], "id": range(10)})
COLUMNS = {"prompt": "caption", "custom_id": "id"}


def prompts(uri: str) -> list[bytes]:
    return [line for block in read_blocks(uri, columns=COLUMNS) for line in block.lines]


def hub_folder(folder: Path, split: str = "train") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for i in range(2):
        shard = ROWS.shard(2, i, contiguous=True)
        shard.to_parquet(str(folder / f"data/{split}-{i:05d}-of-00002.parquet"))
    return folder


def test_what_datasets_saves_is_a_manifest(tmp_path: Path) -> None:
    ROWS.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    (tmp_path / "saved/cache-0123.arrow").write_bytes(b"of a map")
    expected = prompts(str(hub_folder(tmp_path / "hub")))
    assert len(expected) == 10
    assert prompts(str(tmp_path / "saved")) == prompts(f"{tmp_path}/saved/") == expected
    assert [Path(name).name for name in files_of(str(tmp_path / "saved"))] == [
        f"data-{i:05d}-of-00003.arrow" for i in range(3)
    ]
    assert prompts(f"{tmp_path}/hub/data/train-00001-*.parquet") == expected[5:]


def test_a_folder_elsewhere_is_one_too(tmp_path: Path) -> None:
    hub = hub_folder(tmp_path / "hub")
    fsspec.filesystem("memory").put(str(hub), "/datasets/first", recursive=True)
    assert prompts("memory://datasets/first") == prompts(str(hub))
    assert prompts("memory://datasets/first/data/*") == prompts(str(hub))


def test_its_digest_is_of_all_files(tmp_path: Path) -> None:
    hub = hub_folder(tmp_path / "hub")
    before = manifest_digest(str(hub))
    assert manifest_digest(str(hub)) == before
    second = hub / "data/train-00001-of-00002.parquet"
    assert manifest_digest(str(second)) != before
    ROWS.to_parquet(str(second))
    assert manifest_digest(str(hub)) != before


def test_several_splits_or_kinds_and_none_are_refused(tmp_path: Path) -> None:
    both = tmp_path / "both"
    DatasetDict(train=ROWS, test=ROWS).save_to_disk(str(both))
    with pytest.raises(UsageError, match=r"several splits: test/data-\*\.arrow, train/") as caught:
        files_of(str(both))
    assert f"{both}/test/data-*.arrow" in (caught.value.hint or "")
    assert len(files_of(f"{both}/test/data-*.arrow")) == 1
    hub_folder(hub_folder(tmp_path / "hub"), "test")
    with pytest.raises(UsageError, match="several splits"):
        files_of(str(tmp_path / "hub"))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    with pytest.raises(UsageError, match="is a folder without tables"):
        files_of(str(mixed))
    for name in ("a.csv", "b.tsv"):
        (mixed / name).write_text("prompt\n")
    with pytest.raises(UsageError, match=r"holds \.csv and \.tsv tables"):
        files_of(f"{mixed}/*")
    assert files_of(f"{mixed}/*.tsv") == [f"{mixed}/b.tsv"]


def test_a_file_is_itself(tmp_path: Path) -> None:
    for uri in ("", "-", "m.jsonl", "s3://bucket/m.jsonl", "s3://bucket/a.parquet"):
        assert files_of(uri) == [uri]
    (tmp_path / "lines").write_text('{"prompt": "a"}\n')
    assert files_of(str(tmp_path / "lines")) == [f"{tmp_path}/lines"]
