"""The parts of the command line that need neither a broker nor a worker."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from jobs.errors import LineError, ManifestRefused, UsageError
from jobs.inputs.images import store_input
from jobs.models.fingerprints import route_digest
from jobs.models.table import load_models
from jobs.output import layout
from jobs.output.dataset import Summary, write_summary
from jobs.output.records import Record, encode_part
from jobs.output.storage import open_storage
from jobs.requests import Request
from jobs.settings import Settings, Team
from jobs.teams import OPEN_TEAM
from producer.cli import make_cli
from producer.commands import inspecting, rendering
from producer.commands.options import REQUESTS, team_of
from producer.control.progress import Pace
from producer.control.status import Status
from producer.local.whole import Outcome
from producer.planning.manifest import Line, parse_line
from producer.planning.rates import estimate, measure, read_rates
from producer.planning.resolution import PlanOptions, Resolver
from producer.report.errors import show_error
from producer.report.runs import show_outcome, show_statuses
from producer.upkeep.sheet import Tile, draw_sheet, write_sheet
from producer.upkeep.verification import as_line, compare
from tests.datasets import make_dataset
from tests.samples import KEY, STACK, make_record, make_request
from worker.__main__ import app as worker_app

TABLE = load_models()


def resolved(line: bytes) -> Request:
    parsed = parse_line(1, line)
    assert isinstance(parsed, Line)
    weights = {"null": route_digest(TABLE, "null")}
    return Resolver(TABLE, PlanOptions(model="null"), weights).resolve(
        0, parsed.task, parsed.body, parsed.custom_id or "", slots=parsed.slots or 0
    )


@pytest.mark.parametrize(
    "line",
    [
        b'{"prompt":"a"}',
        b'{"prompt":"a","negative_prompt":""}',
        b'{"prompt":"a","negative_prompt":"b","guidance_scale":0,"seed":18446744073709551615}',
        b'{"prompt":"a","custom_id":"x","width":32,"height":48,"response_format":"png"}',
    ],
)
def test_a_record_asks_for_its_own_request_again(line: bytes) -> None:
    request = resolved(line)
    row = make_record(request, file_name="x").row()
    again = resolved(encode_part([as_line(row)]))
    assert again.key == request.key._replace(slots=STACK.batch_width)
    assert again.job_id == request.job_id


def test_compare_names_the_libraries_that_changed() -> None:
    def stack(versions: str, sha256: str) -> Any:
        made = make_record(make_request(), stack=replace(STACK, versions=versions), file_name="f")
        return made.row() | {"sha256": sha256}

    before = stack("torch 2.13.0, peft 0.21.2, driver 550.54", "a")
    now = stack("torch 2.13.0, peft 0.22.0, accelerate 1.15.0", "b")
    (difference,) = compare([before], {0: now}).differences
    assert difference.stack == {
        "versions": ("peft 0.21.2, driver 550.54", "peft 0.22.0, driver absent")
    }
    more = stack("torch 2.13.0, peft 0.21.2, driver 550.54, cudnn 91002", "b")
    (difference,) = compare([before], {0: more}).differences
    assert difference.stack == {}


def test_compare_names_what_changed() -> None:
    row = Record(
        request=resolved(b'{"prompt":"a"}'),
        status="done",
        stack=STACK,
        worker="w",
        attempt=1,
        created_at="",
        file_name="x",
        sha256="1",
    ).row()
    same, other = row, row | {"sha256": "2", "threads": 4}
    verdict = compare([row, row], {0: same, 1: other})
    assert verdict.compared == 2
    (difference,) = verdict.differences
    assert difference.stack == {"threads": ("1", "4")}


def test_rates_replace_guesses(tmp_path: Path) -> None:
    key = KEY
    file = tmp_path / "cache" / "rates.json"
    guess = estimate(key, 100, TABLE, read_rates(file))
    assert guess.device == ""
    longer = key._replace(steps=2 * key.steps)
    assert estimate(longer, 100, TABLE, read_rates(file)).seconds == 2 * guess.seconds
    row = {"model": "null", "adapter": "", "width": 64, "height": 64, "num_inference_steps": 8}
    row |= {"device_name": "a card", "seconds_render": 0.5, "status": "done", "batch_width": 16}
    row |= {"job_id": "0" * 32, "file_name": f"images/00000/{'0' * 32}.png"}
    storage = open_storage(str(tmp_path / "out"))
    storage.write("metadata.jsonl", encode_part([row, row | {"seconds_render": 1.5}]))
    measure(storage, file)
    found = estimate(key, 100, TABLE, read_rates(file))
    assert (found.seconds, found.device) == (100.0, "a card")
    narrow = key._replace(slots=1)  # an image's share of such a call is another
    assert estimate(narrow, 100, TABLE, read_rates(file)).device == ""


def test_unreadable_rates_are_no_rates(tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text('{"null": 3}')
    assert read_rates(file) == {}


def test_pace_leaves_the_wait_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 50.0, 60.0, 61.0, 62.0])
    monkeypatch.setattr("producer.control.progress.time.monotonic", lambda: next(clock))
    pace = Pace()
    rates = [pace.rate(settled) for settled in (100, 100, 110, 120, 130)]
    assert rates == [None, None, 0.0, 10.0, 10.0]


@pytest.mark.parametrize(("seconds", "pace"), [(20, 5.0), (0.01, 0.0)])
def test_the_pace_of_a_single_batch_is_not_told(seconds: float, pace: float) -> None:
    begun = datetime.now(UTC)
    ended = begun + timedelta(seconds=seconds)
    summary = Summary(
        "0" * 12, "finished", "m", 0, begun.isoformat(), 100, done=100,
        first_record_at=begun.isoformat(), last_record_at=ended.isoformat(),
    )  # fmt: skip
    assert Outcome("out", summary, True, seconds + 5).pace == pytest.approx(pace)


def test_refusal_shows_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [LineError(7, "", "prompt", "is required (got '[bold]x[/]')")]
    show_error(ManifestRefused(5, 9, lines, 1))
    said = capsys.readouterr().err
    assert "line 7: prompt: is required (got '[bold]x[/]')" in said
    assert "… and 8 more: imagemill plan" in said


def test_a_row_is_a_line_for_what_reads_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = f"s3://bucket/{'a long name/' * 30}run"
    show_statuses([Status("0" * 12, out, "running", 9, 3, 0, 4, 1, "broker")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(out)


def test_a_chunk_that_was_tried_again_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_statuses([Status("0" * 12, "out", "running", 9, 3, 0, 4, 1, "broker", retries=1)])
    assert ": 1 chunk tried again, 0 deaths" in capsys.readouterr().out


def test_no_keys_are_told(tmp_path: Path) -> None:
    keys = {"IMAGEMILL_KEYS_FILE": str(tmp_path / "keys.json")}
    listed = CliRunner().invoke(make_cli(), ["keys", "list"], env=keys)
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert "There are no keys: imagemill keys create" in listed.stderr


def test_the_end_of_a_run_shows_the_first_reasons_and_where_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = [
        make_record(
            make_request(number, custom_id=f"row-{number}" if number else ""),
            status="rejected",
            code="input_unreachable",
            message=f"no [b]answer[/b]\n{number}",
        )
        for number in range(4)
    ]
    open_storage(str(tmp_path)).write(layout.ERRORS, encode_part([one.row() for one in lost]))
    summary = Summary("0" * 12, "finished", "m.jsonl", 0, "2026-01-01", 9, 5, rejected=4)
    show_outcome(Outcome(str(tmp_path), summary, False, 1.0))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "4 without an image (4 rejected):",
        "  index 0: input_unreachable: no [b]answer[/b]\\n0",
        "  row-1: input_unreachable: no [b]answer[/b]\\n1",
        "  row-2: input_unreachable: no [b]answer[/b]\\n2",
        f"Why, a row each: {tmp_path}/errors.jsonl",
    ]


@pytest.mark.parametrize("rows", [None, b"nix\n", b'{"status": "invalid"}\n'])
def test_a_run_ends_as_it_did_though_its_reasons_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: bytes | None
) -> None:
    if rows:
        (tmp_path / layout.ERRORS).write_bytes(rows)
    summary = Summary("0" * 12, "finished", "m.jsonl", 0, "2026-01-01", 9, 5, rejected=4)
    show_outcome(Outcome(str(tmp_path), summary, False, 1.0))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "4 without an image (4 rejected):",
        f"Why, a row each: {tmp_path}/errors.jsonl",
    ]


def test_a_team_that_the_settings_do_not_know_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(teams={"vision": Team(images_in_flight=5), "text": Team()})
    for known in ("vision", "text", OPEN_TEAM):
        assert team_of(known, settings) == known
    assert team_of("visoin", Settings()) == "visoin"
    assert capsys.readouterr().err == ""
    assert team_of("visoin", settings) == "visoin"
    assert capsys.readouterr().err == (
        "team visoin has no quota: the settings know text, vision; did you mean 'vision'?\n"
    )
    with pytest.raises(UsageError, match="no plain name"):
        team_of("a/b", settings)


def test_plan_takes_all_that_decides_what_is_planned() -> None:
    def options_of(command: Callable[..., None]) -> dict[str, Any]:
        parameters = signature(command).parameters
        shown = get_command(make_cli()).commands[command.__name__].params
        panel = [one.name for one in shown if getattr(one, "rich_help_panel", "") == REQUESTS]
        return {name: (parameters[name].annotation, parameters[name].default) for name in panel}

    assert len(options_of(rendering.run)) > 5
    assert options_of(inspecting.plan) == options_of(rendering.run) == options_of(rendering.submit)


def commands_of(command: Any, *names: str) -> Iterator[tuple[list[str], Any]]:
    """A command and those below it that have helps of their own, with the names that lead there."""
    if command.add_help_option:
        yield [*names], command
        for name, one in getattr(command, "commands", {}).items():
            yield from commands_of(one, *names, name)


def test_helps_lose_no_word_to_markup() -> None:
    found = list(commands_of(get_command(make_cli())))
    assert len(found) > 30
    for names, command in found:
        arguments = [*names, "--help"]
        shown = CliRunner().invoke(make_cli(), arguments, env={"COLUMNS": "500"}).output
        written = [command.help, *(getattr(one, "help", "") for one in command.params)]
        lost = {word for text in written for word in (text or "").split()} - {*shown.split()}
        assert not lost, names


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "run m -o o --format jpgg",
            "'--format': 'jpgg' is not one of 'jpeg', 'png'; did",
        ),
        ("export o t --to webdatset", "'--to': .*'imagefolder'; did you mean 'webdataset'?"),
        ("prioritize r hgh", "'PRIORITY': 'hgh' is not one of 'low', 'normal', 'high'; did you"),
        ("usage o --by teem", "'--by': 'teem' is not one of .*; did you mean 'team'?"),
        ("keys create --priority x", "'--priority': 'x' is not one of 'low', 'normal', 'high' *"),
        ("run m -o o --n 0", "'--n': must be at least 1 .got '0'."),
        ("sheet o --images many", "'--images': must be a whole number .got 'many'."),
        ("run m -o o --seed -1", "'--seed': -1 is no whole number from 0 to"),
    ],
)
def test_wrong_options_are_told_plainly(command: str, said: str) -> None:
    done = CliRunner().invoke(make_cli(), command.split(), env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert re.search(f"Invalid value for {said}", done.output), done.output


def test_wrong_options_of_the_worker_s_commands_are_told_plainly() -> None:
    done = CliRunner().invoke(worker_app, ["--log-format", "jsn"])
    assert done.exit_code == 2
    assert "'jsn' is not one of 'text', 'json'; did you mean 'json'?" in done.output


@pytest.mark.parametrize(("stdout", "status"), [(">/dev/full", 1), (">&-", 0)])
def test_a_result_that_nobody_can_read_is_no_traceback(stdout: str, status: int) -> None:
    command = f"{sys.executable} -m producer models --json {stdout}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    said = "Error: No space left on device: the output cannot be written\n" if status else ""
    assert (done.returncode, done.stderr) == (status, said)


def test_captions_stay_inside_their_tiles() -> None:
    image = Image.new("RGB", (64, 128), "red")
    long = "w" * 200 + " and a very long description " * 20
    sheet = draw_sheet([Tile(image, long, (long, "seed 1"))] * 2)
    gap = sheet.crop((16 + 160 + 1, 0, 16 + 160 + 15, sheet.height))
    assert gap.getcolors() == [(gap.width * gap.height, (255, 255, 255))]


def test_a_sheet_shows_what_an_image_was_made_from(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    storage = open_storage(out)
    blue = BytesIO()
    Image.new("RGB", (64, 64), "blue").save(blue, "GIF")
    stored = store_input(storage, blue.getvalue())
    gone, elsewhere = f"sha256:{'0' * 64}", "https://example.com/a.png"
    make_dataset(out, 2, {0: {"input_images": [stored]}, 1: {"control_images": [gone, elsewhere]}})
    sheet = Image.open(write_sheet(out, 2))
    assert sheet.getpixel((16 + 160 + 8 + 36, 16 + 36)) == (0, 0, 255)
    beside_the_second = sheet.crop((sheet.width - 16 - 72 - 8, 16, sheet.width, 16 + 160))
    assert beside_the_second.getcolors() == [(96 * 160, (255, 255, 255))]


@pytest.mark.parametrize(
    "target", ["", "out/images/sheet.png", "out/sheet.png", "sheet.jpg", "a//"]
)
def test_sheet_refuses_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("out")
    write_summary(
        storage,
        Summary(
            run_id="0" * 12,
            state="finished",
            manifest="m",
            seed=0,
            created_at="2026-01-01",
            requests=1,
            done=1,
        ),
    )
    with pytest.raises(UsageError, match="--to FILE"):
        write_sheet("out", 4, target)
