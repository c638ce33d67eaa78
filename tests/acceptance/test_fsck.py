"""imagemill fsck: what is wrong with a dataset is found, named and mended."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tests.support import Cli, circles, rows


def test_damage_is_found_and_mended(cli: Cli) -> None:
    manifest = cli.manifest(*[line | {"model": "null"} for line in circles(20)])
    cli("run", manifest, "--out", "out")
    out = cli.folder / "out"
    before = checksums(out)
    assert cli.json("fsck", "out") == {"images": 20, "missing": [], "torn": [], "orphans": []}

    gone, cut, changed, *_ = sorted(before)
    (out / gone).unlink()
    (out / cut).write_bytes((out / cut).read_bytes()[:-1])
    data = bytearray((out / changed).read_bytes())
    data[-1] ^= 1
    (out / changed).write_bytes(data)
    (out / "images/00000/stray.jpg").write_bytes(b"x")

    found = cli.json("fsck", "out", code=1)
    assert found["missing"] == [gone]
    assert found["torn"] == sorted([cut, changed])
    assert found["orphans"] == ["images/00000/stray.jpg"]
    assert "--repair mends this" in cli("fsck", "out", code=1).stderr

    cli("fsck", "out", "--repair")
    assert checksums(out) == before
    assert cli.json("fsck", "out")["orphans"] == []
    metadata = rows(out / "metadata.jsonl")
    assert [row["index"] for row in metadata] == list(range(20))
    assert {row["file_name"]: row["sha256"] for row in metadata} == before
    assert "Nothing was left to render" in cli("run", manifest, "--out", "out").stdout


def test_an_unfinished_run_is_refused(cli: Cli) -> None:
    assert "is no output of a run" in cli("fsck", ".", code=2).stderr


def checksums(out: Path) -> dict[str, str]:
    return {
        str(image.relative_to(out)): sha256(image.read_bytes()).hexdigest()
        for image in (out / "images").rglob("*.jpg")
    }
