"""Exports: what real loaders get, that shards are whole, and that they are written once."""

from __future__ import annotations

import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Image, load_dataset

from jobs.errors import FatalError, ImagemillError, UsageError
from jobs.output.dataset import read_summary, write_summary
from jobs.output.images import AHEAD_BYTES, READERS, ImageReader
from jobs.output.storage import Storage, open_storage
from producer.upkeep.export.job import Outcome, export
from producer.upkeep.export.order import FormName, Order
from producer.upkeep.export.selection import parse_condition, parse_splits
from producer.upkeep.export.shards import Selection, ShardSize, parse_size
from tests.datasets import make_dataset, write_rows
from tests.support import eventually

FORMS: tuple[FormName, ...] = ("webdataset", "parquet", "imagefolder")


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def to(tmp_path: Path) -> str:
    return str(tmp_path / "to")


def write(
    out: str, to: str, form: FormName, size: int = 8, where: str = "", names: tuple[str, ...] = ()
) -> Outcome:
    condition = parse_condition(where) if where else None
    selection = Selection(condition, size=ShardSize(size), columns=names)
    return export(out, to, Order(form, selection, where), lambda *_: None)


def columns(to: str) -> set[str]:
    return set(pq.read_schema(next(Path(to).rglob("*.parquet"))).names)


def whole_shards(to: str) -> set[str]:
    """The files that make a shard one."""
    return {name for name in files(to) if name.endswith((".tar", ".parquet"))}


def files(to: str) -> dict[str, bytes]:
    return {str(p.relative_to(to)): p.read_bytes() for p in Path(to).rglob("*") if p.is_file()}


def load(to: str, cache: Path, **options: Any) -> Any:
    return load_dataset(to, cache_dir=str(cache), **options)


def test_parquet_is_what_datasets_loads(out: str, to: str, tmp_path: Path) -> None:
    rows = make_dataset(out, 20, {3: {"strength": 0.5}, 7: {"response_format": "png"}})
    write(out, to, "parquet")
    loaded = load(to, tmp_path / "cache", split="train")
    assert isinstance(loaded.features["image"], Image)
    assert loaded[7]["image"].size == (8, 8)
    raw = loaded.cast_column("image", Image(decode=False))
    found = {row["job_id"]: sha256(row["image"]["bytes"]).hexdigest() for row in raw}
    assert found == {row["job_id"]: row["sha256"] for row in rows}
    assert raw[7]["image"]["path"] == rows[7]["file_name"].rsplit("/", 1)[-1]
    for name in ("prompt", "seed", "width", "guidance_scale"):
        assert raw[name] == [row[name] for row in rows]  # type: ignore[literal-required]
    assert [row["strength"] for row in raw] == [0.5 if i == 3 else None for i in range(20)]


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_those_of_the_image_or_the_ones_asked_for(
    out: str, to: str, form: FormName
) -> None:
    make_dataset(out, 2)
    own = {{"webdataset": "key", "parquet": "image", "imagefolder": "file_name"}[form]}
    write(out, to, form)
    assert {"prompt", "seed", "sha256", "device_name"} <= columns(to)
    assert not {"worker", "attempt", "created_at", "seconds_render"} & columns(to)
    write(out, f"{to}-all", form, names=("all",))
    assert {"worker", "attempt", "created_at", "seconds_render"} <= columns(f"{to}-all")
    write(out, f"{to}-some", form, names=("prompt", "worker"))
    assert columns(f"{to}-some") == {"prompt", "worker"} | own
    with pytest.raises(UsageError, match=r"--columns names 'promt'.*mean 'prompt'"):
        write(out, f"{to}-wrong", form, names=("promt",))


def test_webdataset_is_what_datasets_loads(out: str, to: str, tmp_path: Path) -> None:
    rows = make_dataset(out, 20)
    write(out, to, "webdataset")
    loaded = load(to, tmp_path / "cache", split="train")
    assert loaded[0]["jpg"].size == (8, 8)
    raw = loaded.cast_column("jpg", Image(decode=False))
    assert [sha256(row["jpg"]["bytes"]).hexdigest() for row in raw] == [r["sha256"] for r in rows]
    assert [row["json"]["job_id"] for row in raw] == [row["job_id"] for row in rows]
    assert [row["txt"] for row in raw] == [row["prompt"] for row in rows]


# It leaves the files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_is_what_webdataset_loads(out: str, to: str) -> None:
    import webdataset  # and torch with it

    rows = make_dataset(out, 20)
    write(out, to, "webdataset")
    pipeline = webdataset.WebDataset(
        f"file:{to}/train/{{00000..00002}}.tar", shardshuffle=False, empty_check=False
    )
    samples = list(pipeline)
    assert [sha256(sample["jpg"]).hexdigest() for sample in samples] == [r["sha256"] for r in rows]
    assert [json.loads(sample["json"])["seed"] for sample in samples] == [r["seed"] for r in rows]
    assert samples[9]["__key__"] == "000010001"
    index = pq.read_table(f"{to}/train/00001.parquet")
    assert index["key"][1].as_py() == "000010001"
    assert index["job_id"][1].as_py() == rows[9]["job_id"]


def test_columns_have_one_type_from_the_first_row_on(out: str, to: str, tmp_path: Path) -> None:
    changes: dict[int, dict[str, Any]] = {
        number: {"score": number, "late": "", "odd": number, "strength": 0.5}
        for number in range(20)
    }
    del changes[1]["strength"]
    changes[11] |= {"score": 0.5, "tags": ["a"], "late": "text", "odd": {"a": 1}}
    make_dataset(out, 20, changes)
    write(out, to, "webdataset")
    with tarfile.open(f"{to}/train/00000.tar") as tar:
        members = tar.getnames()
        content = [json.load(tar.extractfile(name)) for name in members if name.endswith("json")]  # type: ignore[arg-type]
    assert all(name.count(".") == 1 for name in members)
    assert members == [f"{i:09d}.{end}" for i in range(8) for end in ("jpg", "json", "txt")]
    assert len({tuple(row) for row in content}) == 1
    assert [repr(row["score"]) for row in content[:2]] == ["0.0", "1.0"]
    assert not {"strength", "tags"} & content[0].keys()  # some samples have none
    assert (content[1]["late"], content[1]["odd"]) == ("", "1")
    loaded = load(to, tmp_path / "cache", split="train")
    assert [loaded[11]["json"][name] for name in ("score", "late", "odd")] == [
        0.5,
        "text",
        '{"a":1}',
    ]
    index = pq.read_table(f"{to}/train/00001.parquet")
    assert (index["tags"][3].as_py(), index["tags"][4].as_py()) == (["a"], None)
    assert pq.read_table(f"{to}/train/00000.parquet")["strength"][1].as_py() is None


def test_an_image_folder_is_what_datasets_loads(out: str, to: str, tmp_path: Path) -> None:
    rows = make_dataset(out, 20, {3: {"response_format": "png"}, 5: {"clip": 0.5}})
    splits = parse_splits("train=0.5,val=0.5")
    order = Order("imagefolder", Selection(splits=splits, size=ShardSize(4)))
    made = export(out, to, order, lambda *_: None)
    found = {split: load(to, tmp_path / "cache", split=split) for split in ("train", "val")}
    assert {split: len(some) for split, some in found.items()} == made.splits
    loaded = {one["index"]: one for some in found.values() for one in some}
    assert sorted(loaded) == list(range(20))
    digests = {sha256(data).hexdigest() for data in files(to).values()}
    assert {row["sha256"] for row in rows} <= digests
    for row in rows:
        assert loaded[row["index"]]["image"].size == (8, 8)
        assert loaded[row["index"]]["sha256"] == row["sha256"]
    assert (loaded[5]["clip"], loaded[4]["clip"]) == (0.5, None)
    about = json.loads(Path(to, "croissant.json").read_text())
    (tables,) = about["distribution"]
    assert list(Path(to).glob(tables["includes"][0]))


@pytest.mark.parametrize("form", FORMS)
def test_only_missing_shards_are_written_again(out: str, to: str, form: FormName) -> None:
    make_dataset(out, 20)
    assert write(out, to, form).written == 3
    before = files(to)
    times = {path: path.stat().st_mtime_ns for path in Path(to).rglob("*")}
    for name in whole_shards(to):
        if "00001" in name:
            Path(to, name).unlink()
    assert write(out, to, form).written == 1
    assert files(to) == before
    same = [str(path) for path, time in times.items() if path.stat().st_mtime_ns == time]
    for part in ("train/00000", "train/00002", "README", "export"):
        assert any(part in path for path in same)
    assert write(out, to, form).written == 0


@pytest.mark.parametrize("extension", ["tar", "parquet"])
def test_a_shard_lacks_neither_of_its_files(out: str, to: str, extension: str) -> None:
    make_dataset(out, 20)
    write(out, to, "webdataset")
    before = files(to)
    Path(to, f"train/00001.{extension}").unlink()
    assert write(out, to, "webdataset").written == 1
    assert files(to) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_image_is_in_no_shard(
    out: str, to: str, tmp_path: Path, form: FormName, damage: str
) -> None:
    rows = make_dataset(out, 20)
    image = Path(out, rows[12]["file_name"])
    whole = image.read_bytes()
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(whole[:-1] + b"x")
    with pytest.raises(FatalError, match=rf"{image.name} is .*\n.*fsck {out} --repair"):
        write(out, to, form)
    assert not [name for name in whole_shards(to) if "00001" in name]
    assert not Path(to, "README.md").exists()
    image.write_bytes(whole)
    assert write(out, to, form).written
    assert any("00001" in name for name in whole_shards(to))
    assert len(load(to, tmp_path / "cache", split="train")) == 20


def test_large_images_are_not_read_far_ahead(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_dataset(out, 40)
    read: list[str] = []

    def noted(storage: Storage, path: str) -> bytes:
        read.append(path)
        return Path(storage.root, path).read_bytes()

    monkeypatch.setattr(Storage, "read", noted)
    for size, ahead in ((10, READERS), (AHEAD_BYTES // 3, 3), (AHEAD_BYTES * 2, 1)):
        with closing(ImageReader(open_storage(out))) as images:
            next(images.read([{**row, "bytes": size} for row in rows]))
            eventually(lambda ahead=ahead: len(read) == ahead)
        assert len(read) == ahead
        read.clear()


@pytest.mark.parametrize("form", FORMS)
def test_several_at_once_make_one_export(tmp_path: Path, out: str, form: FormName) -> None:
    make_dataset(out, 60)
    alone, together = str(tmp_path / "alone"), str(tmp_path / "together")
    write(out, alone, form, 4)
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(write, out, together, form, 4) for _ in range(4)]
    assert files(together) == files(alone)
    assert all(outcome.result().images == 60 for outcome in outcomes)


def test_parquet_has_row_groups_and_a_page_index(out: str, to: str) -> None:
    write_rows(out, make_dataset(out, 1) * 1001)
    write(out, to, "parquet", 10_000)
    about = pq.ParquetFile(f"{to}/train/00000.parquet").metadata
    assert [about.row_group(i).num_rows for i in range(about.num_row_groups)] == [1000, 1]
    column = about.row_group(0).column(0)
    assert (column.path_in_schema, column.compression) == ("image.bytes", "UNCOMPRESSED")
    assert column.has_offset_index
    assert "RLE_DICTIONARY" not in column.encodings


def test_shards_end_at_their_bytes(out: str, to: str) -> None:
    rows = make_dataset(out, 20)
    size = rows[0]["bytes"] * 3
    selection = Selection(size=ShardSize(bytes=size))
    outcome = export(out, to, Order("parquet", selection), lambda *_: None)
    tables = [pq.read_table(path) for path in sorted(Path(to, "train").iterdir())]
    assert len(tables) == outcome.shards > 5
    assert all(sum(table["bytes"].to_pylist()) <= size for table in tables)
    ids = [job for table in tables for job in table["job_id"].to_pylist()]
    assert ids == [row["job_id"] for row in rows]


def test_where_chooses_images(out: str, to: str, tmp_path: Path) -> None:
    make_dataset(out, 20, {n: {"clip": n / 20} for n in range(10)})
    write(out, to, "parquet", where='clip > 0.25 and prompt != "scene 4"')
    assert load(to, tmp_path / "cache", split="train")["index"][:] == [6, 7]
    assert '`clip > 0.25 and prompt != "scene 4"`' in Path(to, "README.md").read_text()
    with pytest.raises(UsageError, match="no image is left"):
        write(out, to, "parquet", where="clip > 1")
    with pytest.raises(UsageError, match=r"no column of the dataset; did you mean 'clip'"):
        write(out, to, "parquet", where="clipp > 1")
    for seed in ("seed > 1", "seed in [42]", "seed not in ['42', 43]", "width in ['64']"):
        with pytest.raises(UsageError, match="Seeds are text"):
            write(out, to, "parquet", where=seed)


ROW: Any = {"a": 1, "f": 0.5, "t": "red", "b": True, "l": ["x"]}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a == 1", True),
        ("1 < a", False),
        ("0 < a <= 1", True),
        ("f >= -1.5", True),
        ("t == 'red' and not a > 1", True),
        ("t in ['red', 'blue'] or a > 1", True),
        ("t not in ('red',)", False),
        ("'re' in t", True),
        ("'x' in l", True),
        ("b", True),
        ("b == False", False),
        ("not b", False),
        ("absent > 1", False),
        ("absent in ['x']", False),
        ("a > 5 or (a == 1 and f < 1)", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    assert parse_condition(text).holds(ROW) is holds


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "t.upper() == 'RED'",
        "a + 1 == 2",
        "a ** 9 == 1",
        "[a for a in t]",
        "(lambda: 1)()",
        "(a := 2)",
        "f'{a}' == 'x'",
        "a is 1",
        "a = 1",
        "5",
        "'x'",
        "t == b'x'",
        "t in [[a]]",
        "a == None",
        "",
        "a >",
        "a\0 == 1",
        "a == " + "9" * 900_0,
        "(" * 400 + "a" + ")" * 400,
        "not " * 249 + "a > '",
        "a == 'x'",
        "t > 1",
        "a in 5",
        "t",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        parse_condition(text).holds(ROW)


def test_the_deepest_condition_holds() -> None:
    assert parse_condition("not " * 246 + "a == 1").holds(ROW)


def test_splits_keep_prompts_together_and_their_shares(tmp_path: Path, out: str) -> None:
    make_dataset(out, 300)
    splits = parse_splits("train=0.8, val=0.2")
    to = str(tmp_path / "to")
    outcome = export(out, to, Order("parquet", Selection(splits=splits)), lambda *_: None)
    assert 200 < outcome.splits["train"] < 280
    loaded = load(to, tmp_path / "cache")
    prompts = {name: set(part["prompt"]) for name, part in loaded.items()}
    assert {name: len(part) for name, part in loaded.items()} == outcome.splits
    assert not prompts["train"] & prompts["val"]

    make_dataset(str(tmp_path / "more"), 400)
    again = str(tmp_path / "again")
    export(
        str(tmp_path / "more"), again, Order("parquet", Selection(splits=splits)), lambda *_: None
    )
    grown = load(again, tmp_path / "cache")
    assert all(prompts[name] <= set(part["prompt"]) for name, part in grown.items())


@pytest.mark.parametrize(
    "text",
    ["", "train", "train=1,val=0.1", "train=0.5,train=0.5", "../x=1", "all=1", "a=nan", "a=-1,b=2"],
)
def test_splits_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"train=0\.9,val=0\.1"):
        parse_splits(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", ShardSize(1000, 2**62)),
        ("500MB", ShardSize(10_000, 500_000_000)),
        ("1 gib", ShardSize(10_000, 1 << 30)),
    ],
)
def test_shard_sizes(text: str, size: ShardSize) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0MB", "-1", "10001", "5TB", "1e3", "MB", "1.5GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard-size"):
        parse_size(text)


def test_two_formats_cannot_share_a_tar(out: str, to: str) -> None:
    make_dataset(out, 4, {1: {"response_format": "png"}})
    with pytest.raises(UsageError, match="jpg and png side by side"):
        write(out, to, "webdataset")
    write(out, to, "webdataset", where="response_format == 'png'")
    with tarfile.open(f"{to}/train/00000.tar") as tar:
        assert tar.getnames() == [f"000000000.{end}" for end in ("png", "json", "txt")]


def test_a_target_that_holds_something_else_is_refused(out: str, tmp_path: Path) -> None:
    make_dataset(out, 4)
    to = tmp_path / "to"
    write(out, str(to), "parquet")
    with pytest.raises(UsageError, match="another export \\(other where\\)"):
        write(out, str(to), "parquet", where="width > 1")
    with pytest.raises(UsageError, match="is inside the dataset"):
        write(out, f"{out}/export", "parquet")
    with pytest.raises(UsageError, match=r"holds out and is no export"):
        write(out, str(tmp_path), "parquet")
    with pytest.raises(UsageError, match="no output of a run"):
        write(str(to), str(tmp_path / "other"), "parquet")
    (to / "export.json").write_text("[]")
    with pytest.raises(UsageError, match=r"export\.json is not ours"):
        write(out, str(to), "parquet")


def test_a_target_reached_by_other_paths_is_inside_the_dataset_too(
    out: str, tmp_path: Path
) -> None:
    make_dataset(out, 1)
    (tmp_path / "link").symlink_to(out)
    for to in (f"{tmp_path}/x/../out/shards", f"{tmp_path}/link/shards"):
        with pytest.raises(UsageError, match="is inside the dataset"):
            write(out, to, "parquet")


def test_of_two_different_exports_at_once_one_is_refused(out: str, tmp_path: Path) -> None:
    make_dataset(out, 4)
    both = Barrier(2)

    def begin(where: str) -> str:
        both.wait()
        try:
            write(out, to, "parquet", size=1, where=where)
        except UsageError:
            return "refused"
        return where

    for trial in range(8):
        to = str(tmp_path / f"to{trial}")
        with ThreadPoolExecutor(2) as pool:
            ended = set(pool.map(begin, ("", "index >= 2")))
        assert len(ended) == 2
        assert "refused" in ended
        shards = len(list(Path(to, "train").iterdir()))
        assert shards == (4 if "" in ended else 2)


def test_a_license_that_is_given_later_is_in_the_card(out: str, to: str) -> None:
    make_dataset(out, 2)
    write(out, to, "parquet")
    order = Order("parquet", Selection(size=ShardSize(8)))
    for name in ("cc0-1.0", "mit"):
        outcome = export(out, to, replace(order, license=name), lambda *_: None)
        assert outcome.written == 0
        assert f'license: "{name}"\n' in Path(to, "README.md").read_text()
        assert json.loads(Path(to, "croissant.json").read_text())["license"] == name
    Path(to, "README.md").write_text("---\nlicense: mit\n---\nmy words")
    for given in (order, replace(order, license="mit")):
        Path(to, "croissant.json").unlink()
        export(out, to, given, lambda *_: None)
        assert Path(to, "croissant.json").exists()
        assert Path(to, "README.md").read_text().endswith("my words")


def test_a_failed_export_without_a_shard_leaves_the_place_to_another_order(
    out: str, to: str
) -> None:
    rows = make_dataset(out, 4)
    image = Path(out, rows[0]["file_name"])
    whole = image.read_bytes()
    image.write_bytes(b"x")
    with pytest.raises(FatalError, match="is not what its record says"):
        write(out, to, "parquet")
    assert not list(Path(to).iterdir())
    image.write_bytes(whole)
    write(out, to, "webdataset", where="width > 1")


def test_an_image_rendered_again_to_the_same_bytes_changes_no_export(out: str, to: str) -> None:
    rows = make_dataset(out, 20)
    write(out, to, "parquet")
    shard = Path(to, "train/00001.parquet")
    there = shard.read_bytes()
    shard.unlink()
    make_dataset(out, 20, {0: {"attempt": 2, "worker": "another", "seconds_render": 9.0}})
    write(out, to, "parquet")
    assert shard.read_bytes() == there
    make_dataset(out, 20, {0: {"prompt": rows[0]["prompt"] + "!"}})
    with pytest.raises(UsageError, match="another export \\(other records\\)"):
        write(out, to, "parquet")


def test_a_card_tells_that_images_were_chosen(out: str, tmp_path: Path) -> None:
    make_dataset(out, 4)
    card = tmp_path / "to" / "README.md"
    write(out, str(card.parent), "parquet")
    assert "chosen" not in card.read_text()
    storage = open_storage(out)
    summary = read_summary(storage)
    assert summary
    write_summary(storage, replace(summary, rejects=3))
    card.unlink()
    write(out, str(card.parent), "parquet")
    assert "Of 7 images that the run made, 3 were not chosen" in card.read_text()


def test_a_card_that_is_there_stays(out: str, tmp_path: Path) -> None:
    make_dataset(out, 4)
    to = tmp_path / "to"
    to.mkdir()
    (to / "README.md").write_text("mine")
    (to / ".gitattributes").write_text("")
    write(out, str(to), "parquet")
    assert (to / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 5},
        {"prompt": None},
        {"width": []},
        {"width": 2**63},
        {"sha256": 5},
        {"bytes": "x"},
        {"bytes": -5},
        {"status": "failed"},
        {"file_name": "images/00000/" + "0" * 32 + ".json"},
        {"key": "x", "image": "y", "a.b": 1, "": 2, "l": [[1], None]},
        {f"c{i}": 1 for i in range(1001)},
        {"model": ["a"], "task": {"a": 1}},
        {"prompt": "a\0b\x1b|`---"},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_a_strangers_row_is_written_or_refused(
    out: str, to: str, tmp_path: Path, change: dict[str, Any], form: FormName
) -> None:
    rows = make_dataset(out, 3)
    write_rows(out, [rows[0], {**rows[1], **change}, rows[2]])  # type: ignore[typeddict-item]
    before = {path for path in tmp_path.rglob("*") if to not in str(path)}
    try:
        write(out, to, form)
    except ImagemillError:
        assert not whole_shards(to)
    else:
        assert len(load(to, tmp_path / "cache", split="train")) == 3
        shutil.rmtree(tmp_path / "cache")
    assert {path for path in tmp_path.rglob("*") if to not in str(path)} == before


def test_croissant_describes_the_files(out: str, to: str) -> None:
    make_dataset(out, 3, {0: {"clip": 0.5}, 1: {"clip": 0.25}, 2: {"clip": 1.0}})
    write(out, to, "parquet")
    about = json.loads(Path(to, "croissant.json").read_text())
    (record_set,), (described,) = about["recordSet"], about["distribution"]
    table = pq.read_table(next(Path(to).glob(described["includes"][0])))
    fields = {one["source"]["extract"]["column"]: one["dataType"] for one in record_set["field"]}
    assert list(fields) == table.column_names
    types = [fields[name] for name in ("image", "clip", "width", "prompt")]
    assert types == ["sc:ImageObject", "sc:Float", "sc:Integer", "sc:Text"]
    assert Path(to, "sheet.png").read_bytes().startswith(b"\x89PNG")
