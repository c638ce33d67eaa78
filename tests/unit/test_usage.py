"""Usage is what the records say, once each."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from jobs.errors import FatalError, UsageError
from jobs.output import layout
from jobs.output.plan import write_plan
from jobs.output.storage import open_storage
from jobs.output.usage import CallUsage, Usage, calls_path, encode_calls
from producer.cli import make_cli
from producer.upkeep.usage import Line, used
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
    sdxl, flux = Line("sdxl", Usage(10.5, 2, 1, 1, 200)), Line("flux", Usage(0.5, 1, bytes=7))
    everywhere = [str(runs), str(runs / "a/first")]  # one of them lies below the other
    assert used(everywhere, "model") == [sdxl, flux]
    assert [one.name for one in used(everywhere, "team")] == ["default", "blue"]
    assert [one.name for one in used(everywhere, "day")] == ["2026-03-01", "2026-03-02"]
    assert [(one.name, one.usage.images) for one in used(everywhere, "run")] == [(RUN, 3)]


def test_calls_count_beside_runs(runs: Path) -> None:
    store = open_storage(str(runs / "facade"))
    for day, process, more in (
        ("2026-03-02", "a", 0),
        ("2026-03-02", "b", 1),
        ("2026-03-03", "a", 2),
    ):
        sums = [
            CallUsage("blue", "flux", Usage(1.0 + more, 1, bytes=3)),
            CallUsage("red", "sdxl", Usage(0.25, failed=1)),
        ]
        store.write(calls_path(day, process), encode_calls(sums))
    store.write("calls/blue/2026-03-03/_run/none.png", b"")  # images of calls are no outputs
    default, blue, red = used([str(runs)], "team")
    assert blue == Line("blue", Usage(6.5, 4, bytes=7 + 9))
    assert default.usage.device_seconds == 10.5
    assert red == Line("red", Usage(0.75, failed=3))
    assert {one.name: one.usage.device_seconds for one in used([str(runs)], "day")} == {
        "2026-03-01": 10.5, "2026-03-02": 0.5 + 3.5, "2026-03-03": 3.25,
    }  # fmt: skip
    assert {one.name for one in used([str(runs)], "run")} == {RUN, "calls"}


def test_what_calls_used_is_not_anybodys(tmp_path: Path) -> None:
    open_storage(str(tmp_path)).write(calls_path("2026-03-02", "a"), b'{"team": "blue"}')
    with pytest.raises(FatalError, match="imagemill did not write"):
        used([str(tmp_path)], "model")


def test_csv(runs: Path) -> None:
    shown = CliRunner().invoke(make_cli(), ["usage", str(runs), "--by", "model", "--csv"])
    assert shown.stdout.splitlines() == [
        "name,device_seconds,images,rejected,failed,bytes",
        "sdxl,10.5,2,1,1,200",
        "flux,0.5,1,0,0,7",
    ]


def test_csv_or_json() -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        CliRunner().invoke(make_cli(), ["usage", ".", "--csv", "--json"], catch_exceptions=False)


def test_a_table_without_more_words(runs: Path) -> None:
    shown = CliRunner().invoke(make_cli(), ["usage", str(runs), "--by", "day"])
    (line,) = (one for one in shown.stdout.splitlines() if "2026-03-02" in one)
    assert [word for word in line.split() if word.strip("│")][-5:] == ["0.5", "1", "0", "0", "7"]


def test_nothing_was_used_where_nothing_ran(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="no run's output and no facade's store lies at or below"):
        used([str(tmp_path), str(tmp_path / "absent")], "model")
