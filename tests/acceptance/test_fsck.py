"""imagemill fsck: what is wrong with a dataset is found, named and mended."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from jobs.errors import UsageError
from jobs.output.dataset import RunState, planned, write_summary
from jobs.output.storage import Storage, open_storage
from jobs.settings import Settings
from producer.control.progress import display
from producer.local.embedded import Crew
from producer.local.occupancy import occupied
from producer.planning.reopening import runs_of
from producer.report.checks import advice_on
from producer.upkeep import fsck
from producer.upkeep.fsck import Damage, inspect, repair
from tests.datasets import make_run
from tests.support import Cli, circles, rows

FILES = ("missing", "torn", "unreadable", "orphans", "unrecorded", "stale", "lost")
KINDS = (*FILES, "unscored", "scorers", "added")
WHOLE = {"images": 20} | {kind: [] for kind in KINDS}


def test_damage_is_found_and_mended(cli: Cli) -> None:
    manifest = cli.manifest(*[line | {"model": "null"} for line in circles(20)])
    cli("run", manifest, "--out", "out")
    out = cli.folder / "out"
    before = checksums(out)
    assert cli.json("fsck", "out") == WHOLE

    gone, cut, changed, *_ = sorted(before)
    (out / gone).unlink()
    (out / cut).write_bytes((out / cut).read_bytes()[:-1])
    data = bytearray((out / changed).read_bytes())
    data[-1] ^= 1
    (out / changed).write_bytes(data)
    stray = f"images/00000/{'0' * 32}.jpg"
    (out / stray).write_bytes(b"x")
    (note := out / "images/00000/note.txt").write_text("mine")

    found = cli.json("fsck", "out", code=1)
    assert found["missing"] == [gone]
    assert found["torn"] == sorted([cut, changed])
    assert found["orphans"] == [stray]
    advice = cli("fsck", "out", code=1).stderr
    assert "--repair mends this: it renders again what is missing" in advice
    assert "and removes the orphans" in advice

    cli("fsck", "out", "--repair")
    assert checksums(out) == before
    assert note.read_text() == "mine"
    assert cli.json("fsck", "out") == WHOLE
    metadata = rows(out / "metadata.jsonl")
    assert [row["index"] for row in metadata] == list(range(20))
    assert {row["file_name"]: row["sha256"] for row in metadata} == before
    assert "Nothing was left to render" in cli("run", manifest, "--out", "out").stdout


def test_records_that_are_gone_are_made_again_and_no_image_is_removed(cli: Cli) -> None:
    """Images without a record were orphans: they were removed, and all was said to be mended."""
    manifest = cli.manifest(*[line | {"model": "null"} for line in circles(20)])
    cli("run", manifest, "--out", "out")
    out = cli.folder / "out"
    before = checksums(out)
    parts = sorted((out / "_run").glob("*/parts/*.done.jsonl"))
    first = rows(parts[0])[0]
    parts[0].write_bytes(parts[0].read_bytes().split(b"\n", 1)[1])
    parts[-1].unlink()
    gone = {row["custom_id"] for row in rows(out / "metadata.jsonl")}
    gone -= {row["custom_id"] for part in parts[:-1] for row in rows(part)}
    assert first["custom_id"] in gone
    found = cli.json("fsck", "out", code=1)
    assert set(found.pop("unrecorded")) == gone
    assert found == {kind: WHOLE[kind] for kind in found}
    (out / "metadata.jsonl").unlink()  # nothing names these images now
    assert cli.json("fsck", "out", code=1)["orphans"]
    cli("fsck", "out", "--repair")
    assert checksums(out) == before
    assert cli.json("fsck", "out") == WHOLE

    (run,) = (out / "_run").iterdir()
    shutil.rmtree(run)
    found = cli.json("fsck", "out", "--repair", code=1)
    assert found == WHOLE | {"lost": [f"_run/{run.name}/plan.json"]}
    assert f"remove {run}, and run or submit" in cli("fsck", "out", code=1).stderr
    assert checksums(out) == before
    cli("run", manifest, "--out", "out")
    assert cli.json("fsck", "out") == WHOLE
    assert checksums(out) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: None,
        lambda data: data.split(b"\n", 1)[1],
        lambda data: b"{" + data,
        lambda data: data + data.splitlines(True)[0],
        lambda data: data.replace(b'"seed":"', b'"seed":"1', 1),
    ],
    ids=["removed", "a row removed", "no JSON", "a row twice", "a value changed"],
)
def test_a_dataset_that_is_not_what_the_records_say_is_written_anew(
    damage: Callable[[bytes], bytes | None], tmp_path: Path
) -> None:
    """All was said to be there and whole."""
    storage = open_storage(str(tmp_path))
    make_run(storage.uri, [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)])
    assert inspect(storage).is_none
    whole = storage.read("metadata.jsonl")
    changed = damage(whole)
    if changed is None:
        storage.remove("metadata.jsonl")
    else:
        storage.write("metadata.jsonl", changed)
    storage.remove("errors.jsonl")
    found = inspect(storage)
    assert found.found | {"stale": []} == {kind: [] for kind in found.found}
    assert found.stale == ["errors.jsonl", "metadata.jsonl"]
    assert mended(storage).is_none
    assert storage.read("metadata.jsonl") == whole
    assert storage.read("errors.jsonl") == b""


def test_what_cannot_be_read_is_named_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    """The check had ended with the first."""
    storage = open_storage(str(tmp_path))
    make_run(storage.uri, [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)])
    closed, torn, dangling, *_ = sorted(tmp_path.rglob("*.png"))
    dangling.unlink()
    dangling.symlink_to("nothing")
    closed.unlink()
    closed.symlink_to(closed)  # nobody can read a link to itself, not even root
    torn.write_bytes(b"")
    (part, *_) = sorted(tmp_path.rglob("*.done.jsonl"))
    part.write_bytes(b"x" + part.read_bytes())
    found = inspect(storage)
    assert found.lost == [str(part.relative_to(tmp_path))]
    assert found.unreadable == [str(closed.relative_to(tmp_path))]
    assert found.torn == [str(torn.relative_to(tmp_path))]
    assert found.missing == [str(dangling.relative_to(tmp_path))]
    assert found.orphans == []
    assert "or remove them: then" in advice_on(found, storage)
    assert mended(storage) == found


def test_images_of_a_run_that_came_meanwhile_are_no_orphans(cli: Cli) -> None:
    """Inspections list the runs before the images: what came between them was removed."""
    lines = [line | {"model": "null"} for line in circles(9)]
    cli("run", cli.manifest(*lines[:5]), "--out", "out")
    out = cli.folder / "out"
    stray = f"images/00000/{'0' * 32}.jpg"
    (out / stray).write_bytes(b"x")
    storage = open_storage(str(out))
    damage = inspect(storage)
    assert damage.orphans == [stray]
    before = checksums(out).keys()
    cli("run", cli.manifest(*lines), "--out", "out")
    new = sorted(checksums(out).keys() - before)
    assert len(new) == 4
    with display(True) as shown:
        seen = replace(damage, orphans=[stray, *new])
        assert repair(storage, seen, Settings(), Crew("cpu", 1), shown).is_none
    assert not (out / stray).exists()
    assert cli.json("fsck", "out") == WHOLE | {"images": 9}

    (out / stray).write_bytes(b"x")
    with occupied(storage):
        said = cli("fsck", "out", "--repair", code=2).stderr
    assert f"another imagemill run renders into {out}, or fsck mends it" in said
    assert (out / stray).exists()


@pytest.mark.parametrize("state", ["running", "finished"])
def test_no_orphan_is_removed_once_another_run_comes(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it may in a bucket, which nobody has alone."""
    storage = open_storage(str(tmp_path))
    plan = make_run(storage.uri, [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)])
    (stray := tmp_path / f"images/00000/{'f' * 32}.png").write_bytes(b"x")
    damage = inspect(storage)
    assert len(damage.orphans) == 1

    def come(storage: Storage, current: str) -> list[str]:
        write_summary(storage, planned(replace(plan, run_id="f" * 12), state))
        return runs_of(storage, current)

    monkeypatch.setattr(fsck, "runs_of", come)
    with display(True) as shown:
        if state == "running":
            with pytest.raises(UsageError, match="has not finished"):
                repair(storage, damage, Settings(), Crew("cpu", 1), shown)
        else:
            assert repair(storage, damage, Settings(), Crew("cpu", 1), shown) == damage
    assert stray.exists()


def mended(storage: Storage) -> Damage:
    """What is left of the damage by a repair that renders nothing."""
    with display(True) as shown:
        return repair(storage, inspect(storage), Settings(), Crew("cpu", 1), shown)


def test_a_dataset_that_is_gone_is_told_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    """Commands ended with a traceback."""
    storage = open_storage(str(tmp_path / "out"))
    make_run(storage.uri, [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(5)])
    storage.remove("metadata.jsonl")
    for name, *more in (
        ("export", "there", "--to", "parquet"),
        ("export", "other", "--layout", "geneval"),
        ("page",),
        ("sheet",),
        ("verify",),
        ("diff", storage.uri),
    ):
        said = cli(name, storage.uri, *more, code=1).stderr
        assert f"{storage.uri}/metadata.jsonl is missing" in said
        assert f"imagemill fsck {storage.uri} --repair writes it anew" in said
        assert "Traceback" not in said


def test_an_unfinished_run_is_refused(cli: Cli) -> None:
    assert "is no output of a run" in cli("fsck", ".", code=2).stderr


def checksums(out: Path) -> dict[str, str]:
    return {
        str(image.relative_to(out)): sha256(image.read_bytes()).hexdigest()
        for image in (out / "images").rglob("*.jpg")
    }
