"""Schedules: which times are due by which clock, and what a wrong file is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from jobs.errors import UsageError
from jobs.models.table import load_models
from jobs.output.storage import open_storage
from jobs.requests import Rule
from jobs.settings import Settings
from producer.control.installation import installation
from producer.planning.resolution import PlanOptions
from producer.planning.submission import Job, identify
from producer.schedules.firing import Firing
from producer.schedules.journal import End, Fire, Journal, Opened
from producer.schedules.policy import GRACE, due, judge
from producer.schedules.table import Schedule, load_schedules
from producer.schedules.templates import check_template, fill, key, moment_of
from producer.schedules.times import Cron

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[2] / "configs/schedules.toml"


def schedule(**fields: object) -> Schedule:
    plain = {"name": "s", "cron": "0 * * * *", "manifest": "m", "out": "o/{date}/{time}"}
    return Schedule.model_validate(plain | fields)


def local_times(cron: str, start: datetime, count: int) -> list[str]:
    found = islice(Cron(cron, BERLIN).after(start.astimezone(UTC)), count)
    return [f"{one.astimezone(BERLIN):%d %H:%M %Z}" for one in found]


# In 2026, clocks in Berlin go from 02:00 to 03:00 on 29 March, from 03:00 to 02:00 on 25 October.
@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("30 2 * * *", ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"]),  # right after the gap
        ("0,30 2 * * *", ["28 02:00 CET", "28 02:30 CET", "29 03:00 CEST", "30 02:00 CEST"]),
        ("30 3 * * *", ["28 03:30 CET", "29 03:30 CEST", "30 03:30 CEST"]),
    ],
)
def test_a_time_that_does_not_exist_comes_once_after_the_gap(
    cron: str, expected: list[str]
) -> None:
    start = datetime(2026, 3, 28, tzinfo=BERLIN)
    assert local_times(cron, start, len(expected)) == expected


@pytest.mark.parametrize("start_hour", [0, 1, 2, 3])  # UTC, the first half of which repeats
def test_a_time_that_comes_twice_is_due_once(start_hour: int) -> None:
    start = datetime(2026, 10, 25, start_hour, tzinfo=UTC)
    expected = ["25 02:30 CEST", "26 02:30 CET", "27 02:30 CET"]
    # 02:30 CEST is 00:30 UTC: a start after it must not see it again.
    missed = 0 if start_hour == 0 else 1
    assert local_times("30 2 * * *", start, 2) == expected[missed : missed + 2]


def test_every_half_hour_goes_on_evenly_through_both_changes() -> None:
    for start in (datetime(2026, 3, 28, 22, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)):
        found = list(islice(Cron("*/30 * * * *", BERLIN).after(start), 12))
        assert found == [start + i * timedelta(minutes=30) for i in range(1, 13)]


def test_times_do_not_depend_on_where_one_begins_to_look() -> None:
    cron = Cron("10,40 1-3 * * *", BERLIN)
    for day in (datetime(2026, 3, 29, tzinfo=BERLIN), datetime(2026, 10, 25, tzinfo=BERLIN)):
        begin, end = day.astimezone(UTC), day.astimezone(UTC) + timedelta(days=2)
        whole = list(cron.between(begin, end))
        for minutes in range(0, 48 * 60, 7):
            start = begin + timedelta(minutes=minutes)
            assert list(cron.between(start, end)) == [one for one in whole if one > start]


def test_placeholders() -> None:
    moment = datetime(2026, 3, 1, 3, 0, tzinfo=BERLIN)
    text = "s3://b/{name}/{date}/{time}/{nominal:%Y/%m}/{nominal}"
    assert fill(text, "x", moment) == "s3://b/x/2026-03-01/0300/2026/03/20260301T020000Z"
    assert fill("{time}", "x", moment.replace(second=5)) == "030005"
    assert moment_of(key(moment)) == moment


def test_an_hour_that_comes_twice_has_two_names() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    times = [(first + timedelta(hours=hour)).astimezone(BERLIN) for hour in range(3)]
    assert [fill("{time}", "x", one) for one in times] == ["0230", "0230B", "0330"]


@pytest.mark.parametrize("wrong", ["{dat}", "{date", "date}", "{date:%Y}", "{name.x}", "{{date}}"])
def test_a_wrong_placeholder_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"placeholder|brace|takes no format"):
        check_template(wrong)


def times_due(now: datetime, *, noted: tuple[str, ...] = (), **fields: object) -> list[str]:
    found = due(schedule(**fields), NOON - timedelta(days=9), now, set(noted))
    return [f"{one:%d %H:%M}" for one in found]


@pytest.mark.parametrize("catchup", ["none", "last", "all"])
def test_what_is_due_now_is_due(catchup: str) -> None:
    seen = ("20261126T110000Z",)
    options = {"catchup": catchup, "catchup_window": "60m", "noted": seen}
    assert times_due(NOON, **options) == ["26 12:00"]
    assert times_due(NOON + GRACE - timedelta(seconds=1), **options) == ["26 12:00"]
    assert times_due(NOON - timedelta(seconds=1), **options) == []
    options["noted"] = (*seen, "20261126T120000Z")
    assert times_due(NOON + timedelta(minutes=1), **options) == []


@pytest.mark.parametrize(
    ("catchup", "window", "expected"),
    [
        ("none", "24h", []),
        ("last", "24h", ["26 12:00"]),
        ("last", "15m", []),
        ("all", "2h", ["26 11:00", "26 12:00"]),
        ("all", "150m", ["26 10:00", "26 11:00", "26 12:00"]),
        ("all", "15m", []),
    ],
)
def test_what_was_missed_is_made_up_as_the_schedule_says(
    catchup: str, window: str, expected: list[str]
) -> None:
    now = NOON + timedelta(minutes=20)
    assert times_due(now, catchup=catchup, catchup_window=window) == expected


def test_the_last_one_missed_stands_for_those_before_it() -> None:
    last = {"catchup": "last", "catchup_window": "1d"}
    # Once it is taken on, or a newer one is due in time, the others stay as they are.
    later = NOON + timedelta(minutes=30)
    assert times_due(later, noted=("20261126T120000Z",), **last) == []
    assert times_due(NOON, **last) == ["26 12:00"]


def test_nominal_times_of_a_clock_that_was_ahead_come_again() -> None:
    noted = ("20261126T150000Z",)  # taken on when it was noon
    for catchup in ("none", "last", "all"):
        options = {"catchup": catchup, "catchup_window": "30m", "noted": noted}
        assert times_due(NOON + timedelta(hours=1), **options) == ["26 13:00"]
        assert times_due(NOON + timedelta(hours=3), **options) == []


@pytest.mark.parametrize(
    ("overlap", "running", "waiting", "verdict"),
    [
        ("skip", 0, 0, "begin"), ("skip", 1, 0, "skip"), ("skip", 0, 1, "wait"),
        ("queue", 0, 0, "begin"), ("queue", 1, 0, "wait"), ("queue", 0, 1, "wait"),
        ("allow", 0, 0, "begin"), ("allow", 3, 3, "begin"),
    ],
)  # fmt: skip
def test_overlap(overlap: str, running: int, waiting: int, verdict: str) -> None:
    assert judge(schedule(overlap=overlap), running, waiting) == verdict


def test_the_example_works() -> None:
    table = load_schedules(str(EXAMPLE))
    table.check_models(load_models())
    firing = Firing(installation(Settings()), load_models(), (), lambda _: None)
    nightly = firing.job(table.get("nightly"), key(NOON))
    assert nightly.occasion == "nightly 20261126T120000Z"
    assert nightly.out == "out/schedules/nightly/2026-11-26"
    assert nightly.options == PlanOptions(int(NOON.timestamp()), "shapes", local_files=True)
    with pytest.raises(UsageError, match="It has: minutely, nightly"):
        table.get("weekly")


GOOD = """
state = "state"
[schedules.a]
cron = "0 3 * * *"
manifest = "m.jsonl"
out = "out/{date}"
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('state = "state"', "", "state: is required"),
        ('"0 3 * * *"', '"0 3 * *"', "a.cron: must have five fields"),
        ('"0 3 * * *"', '"61 3 * * *"', "a.cron: bad minute in '61 3"),
        ('"0 3 * * *"', '"0 0 30 2 *"', "a.cron: bad day-of-month"),
        ('"0 3 * * *"', "3", "a.cron: input should be a valid string"),
        ("manifest", "manifesto", "a.manifesto: unknown field; did you mean 'manifest'?"),
        ("m.jsonl", "{day}", "a.manifest: unknown placeholder {day}; known: name, date"),
        ('"state"', '"gcss://b/s"', "state: location 'gcss://b/s': Protocol not known: gcss"),
        ('"state"', '"zip://a"', "state: location 'zip://a': archives and '::' are not taken"),
        ("m.jsonl", "gcss://b/{date}", "a.manifest: location 'gcss://b/2"),
        ("out/{date}", "gcss://b/{date}", "a.out: location 'gcss://b/2"),
        ("out/{date}", "zip://a::{date}", "archives and '::' are not taken"),
        ("out/{date}", "out", "a.out: two nominal times have the same; add {date}"),
        ("0 3 * * *", "0 3,15 * * *", "a.out: two nominal times have the same; add {date}"),
        ("[schedules.a]", "[schedules.A]", "A: a name is lower-case letters"),
        ("cron", 'timezone = "Berlin"\ncron', "a.timezone: is no time zone; examples"),
        ("cron", 'seed = "random"\ncron', "a.seed: input should be 'nominal'"),
        ("cron", "seed = -1\ncron", "a.seed: input should be greater than or equal to 0"),
        ("cron", 'overlap = "never"\ncron', "a.overlap: input should be 'skip', 'queue' or"),
        ("cron", 'catchup = "some"\ncron', "a.catchup: input should be 'none', 'last' or"),
        ("cron", 'catchup_window = "day"\ncron', "a.catchup_window: must be a number with m,"),
        ("cron", 'catchup_window = "400d"\ncron', "a.catchup_window: must be at most 366d"),
        ("cron", "pause_after_failures = 0\ncron", "a.pause_after_failures: input should be"),
        ("cron", 'map = { promt = "text" }\ncron', "a.map: --map promt=text: names no field"),
        ("cron", 'keep = ["seed"]\ncron', "a.keep: --keep seed: "),
        ("cron", 'score = ["beauty"]\ncron', "a.score: no scorer is called 'beauty'"),
        ("cron", "choose = { best_of = 2 }\ncron", "a.choose: by: is required"),
        ("cron", "choose = { best_of = 1 }\ncron", "a.choose: says nothing to choose by"),
        ("cron", "choose = { min = { blank = 1 } }\ncron", "a.choose: min: no scorer of the run"),
        ("cron", 'name = "b"\ncron', "a.name: the name is that of the table"),
        ("cron", 'model = "nope"\ncron', "a.model: unknown model 'nope'"),
        ("[schedules.a]", "[schedules]\n[other]", "other: unknown field"),
        ('"state"', "state", "is not TOML"),
        ('"state"', "[" * 2000, "is not TOML: nested too deeply"),
        (
            "cron",
            "model.a" + ".a" * 900 + " = 1\ncron",
            "a.model: input should be a valid string (got {'a",
        ),
    ],
)
def test_a_wrong_file_names_file_schedule_and_field(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    file = tmp_path / "schedules.toml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError) as refused:
        load_schedules(str(file)).check_models(load_models())
    assert str(file) in refused.value.message
    assert complaint in refused.value.message


def test_a_schedule_submits_with_the_options_of_submit(tmp_path: Path) -> None:
    file = tmp_path / "schedules.toml"
    file.write_text(
        GOOD
        + 'map = { seed = "n", prompt = "caption" }\nkeep = ["topic"]\nscore = ["statistics"]\n'
        + "n = 2\nchoose = { min = { sharpness = 9 }, max_tries = 3 }\n"
    )
    firing = Firing(installation(Settings()), load_models(), (), lambda _: None)
    options = firing.job(load_schedules(str(file)).get("a"), key(NOON)).options
    assert options.columns == (("prompt", "caption"), ("seed", "n"))
    assert (options.n, options.keep, options.scorers) == (2, ("topic",), ("statistics",))
    assert options.rule == Rule(1, 3, "", (("sharpness", 9.0),), ())


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "schedules.toml"
    file.write_text(
        GOOD.replace("0 3", "99 3") + '[schedules.b]\ncron = "* * * * *"\nout = "o/{date}"\n'
    )
    with pytest.raises(UsageError) as refused:
        load_schedules(str(file))
    found = refused.value.message.splitlines()[1:]
    assert found == ["  a.cron: bad minute in '99 3 * * *'", "  b.manifest: is required"]


def test_a_location_that_is_away_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "schedules.toml"
    file.write_text(GOOD.replace("out/", "ftp://127.0.0.1:1/"))
    assert load_schedules(str(file)).get("a").out == "ftp://127.0.0.1:1/{date}"


def test_a_file_may_lie_in_storage(tmp_path: Path) -> None:
    open_storage(f"memory://{tmp_path}").write("s.toml", GOOD.encode())
    assert load_schedules(f"memory://{tmp_path}/s.toml").get("a").cron == "0 3 * * *"
    with pytest.raises(UsageError, match="does not exist"):
        load_schedules(f"memory://{tmp_path}/t.toml")


def test_an_occasion_makes_another_run_and_none_makes_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"prompt": "a"}\n')

    def run_id(*occasion: str) -> str:
        table = load_models(TABLE_FILE)
        out = "memory://test-occasion"  # the output location is part of the identity
        job = Job(str(tmp_path / "m.jsonl"), out, table, PlanOptions(model="null"), *occasion)
        return identify(job).run_id

    TABLE_FILE = tmp_path / "models.toml"
    TABLE_FILE.write_text('default = "null"\n[models.null]\nrepo = "null:"\n')
    ids = [run_id(), run_id(""), run_id("s 20261126T030000Z"), run_id("s 20261127T030000Z")]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.fixture(params=["folder", "bucket"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    place = tmp_path if request.param == "folder" else request.getfixturevalue("bucket")
    return Journal(open_storage(f"{place}/state"), schedule())


def test_the_first_decision_stands(journal: Journal) -> None:
    first = Fire(key(NOON), "begun", "now", run_id="a" * 12)
    assert journal.decide(first) == first
    assert journal.decide(Fire(key(NOON), "begun", "then", run_id="b" * 12)) == first
    assert journal.noted([NOON]) == {key(NOON)}


def test_nominal_times_count_from_when_a_cron_expression_was_first_seen(journal: Journal) -> None:
    assert journal.since(NOON) == NOON
    assert journal.since(NOON + timedelta(hours=1)) == NOON
    changed = Journal(journal.storage, schedule(cron="30 * * * *"))
    assert changed.since(NOON + timedelta(hours=2)) == NOON + timedelta(hours=2)
    # A clock that was ahead has not the last word.
    assert journal.since(NOON - timedelta(days=1)) == NOON - timedelta(days=1)
    journal.resume(NOON + timedelta(hours=5))
    assert journal.since(NOON + timedelta(hours=6)) == NOON + timedelta(hours=5)


def test_failures_in_a_row_are_counted_once_each(journal: Journal) -> None:
    counts = [journal.count_failure(*one) for one in (("1", True), ("1", True), ("2", True))]
    assert counts == [1, 1, 2]
    assert journal.count_failure("3", False) == 0
    assert journal.count_failure("4", True) == 1


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (End("finished", "", done=3), False),
        (End("finished", "", done=3, without_image=1), False),  # rejected: its own fault
        (End("finished", "", done=3, failed=1, without_image=1), True),
        (End("finished", "", done=0, without_image=2), True),
        (End("cancelled", "", done=1), False),
    ],
)
def test_what_counts_as_a_failure(end: End, failure: bool) -> None:
    assert end.is_failure is failure


def test_the_latest_are_the_newest_of_all_days(journal: Journal) -> None:
    moments = [NOON + timedelta(hours=9 * i) for i in range(8)]
    for moment in moments:
        journal.decide(Fire(key(moment), "skipped", ""))
    journal.note(key(moments[-1] + timedelta(hours=1)), Opened())
    expected = [key(moments[-1] + timedelta(hours=1)), *map(key, reversed(moments))]
    for count in (1, 3, 8, 99):
        assert journal.latest(count) == expected[:count]
