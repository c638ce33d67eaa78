"""Usage is what the records say, once each."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from jobs.errors import UsageError
from jobs.output import layout
from jobs.output.plan import write_plan
from jobs.output.storage import open_storage
from producer.cli import make_cli
from producer.upkeep.usage import Usage, used
from tests.samples import make_plan

RUN = "0123456789ab"
TEAM = f"facade/batches/blue/batch_{'0' * 32}/out"


def part(folder: Path, out: str, name: str, *rows: dict[str, object]) -> None:
    usual = {"seconds_render": 0.5, "status": "rejected", "created_at": "2026-03-01T23:59:59.9"}
    lines = [
        orjson.dumps({"job_id": f"{i:032x}", "model": "sdxl", **usual, **row})
        for i, row in enumerate(rows)
    ]
    path = f"{layout.parts(RUN)}/{name}"
    open_storage(str(folder / out)).write(path, b"\n".join(lines) + b"\n")


def done(number: int, size: int = 100) -> dict[str, object]:
    name = f"images/00000/{number:032x}.png"
    return {"status": "done", "file_name": name, "bytes": size}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    part(tmp_path, "a/first", "00000.0000.done.jsonl", done(0), done(1), {})
    part(
        tmp_path,
        "a/first",
        "00000.0001.abc.jsonl",
        {"status": "failed", "seconds_render": 7.0, "seconds_lost": 2.0},
    )
    part(tmp_path, "a/second", "00000.reused.0000.jsonl", done(0), done(1))
    part(
        tmp_path, TEAM, "00000.0000.done.jsonl",
        done(0, 7) | {"model": "flux", "created_at": "2026-03-02T00:00:00.0"},
    )  # fmt: skip
    plan = make_plan(RUN, team="blue")
    write_plan(open_storage(str(tmp_path / TEAM)), plan)
    (tmp_path / "a/notes.txt").write_text("no folder")
    return tmp_path


def test_records_count_once_by_whatever_is_asked(runs: Path) -> None:
    sdxl, flux = (
        Usage(name="sdxl", device_seconds=10.5, images=2, rejected=1, failed=1, bytes=200),
        Usage(name="flux", device_seconds=0.5, images=1, rejected=0, failed=0, bytes=7),
    )
    everywhere = [str(runs), str(runs / "a/first")]  # one of them lies below the other
    assert used(everywhere, "model") == [sdxl, flux]
    assert [one.name for one in used(everywhere, "team")] == ["default", "blue"]
    assert [one.name for one in used(everywhere, "day")] == ["2026-03-01", "2026-03-02"]
    assert [(one.name, one.images) for one in used(everywhere, "run")] == [(RUN, 3)]


def test_csv(runs: Path) -> None:
    shown = CliRunner().invoke(make_cli(), ["usage", str(runs), "--by", "model", "--csv"])
    assert shown.stdout.splitlines() == [
        "name,device_seconds,images,rejected,failed,bytes",
        "sdxl,10.5,2,1,1,200",
        "flux,0.5,1,0,0,7",
    ]


def test_nothing_was_used_where_nothing_ran(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="no run's output lies at or below"):
        used([str(tmp_path), str(tmp_path / "absent")], "model")
