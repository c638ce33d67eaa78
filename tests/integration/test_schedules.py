"""Schedules against a broker, with a clock of the test's own: nothing is lost, nothing doubled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest

from jobs.broker.counters import Counters
from jobs.errors import UsageError
from jobs.output.dataset import read_summary
from jobs.output.storage import open_storage
from producer.control.installation import installation
from producer.control.stopping import cancel
from producer.schedules.firing import Firing
from producer.schedules.history import Entry, entries, overview
from producer.schedules.journal import Fire, Journal, Opened, Pause
from producer.schedules.news import News
from producer.schedules.scheduler import Scheduler
from producer.schedules.table import load_schedules
from producer.schedules.templates import key
from tests.sites import Site
from tests.support import eventually

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class Plant:
    """Schedulers of one file, with one clock."""

    site: Site
    place: str
    now: datetime = NOON - MINUTE / 2
    told: list[News] = field(default_factory=list)

    def write(self, **fields: object) -> None:
        """The file with one schedule, which is due every minute."""
        row = {"cron": "* * * * *", "manifest": "m.jsonl", "out": "o/{date}/{time}"} | fields
        row |= {name: f"{self.place}/{row[name]}" for name in ("manifest", "out")}
        lines = [f"{name} = {value!r}" for name, value in row.items()]
        state = f"state = '{self.place}/state'"
        self.file.write_text("\n".join([state, "[schedules.s]", *lines]))

    def manifest(self, prompt: str = "a") -> None:
        open_storage(self.place).write("m.jsonl", b'{"prompt": "%s"}\n' % prompt.encode())

    @property
    def file(self) -> Path:
        return self.site.folder / "schedules.toml"

    def firing(self) -> Firing:
        known = installation(self.site.settings)
        return Firing(known, self.site.table, (), self.told.append)

    def scheduler(self) -> Scheduler:
        return Scheduler(str(self.file), self.firing(), lambda: self.now, look_seconds=0)

    def tick(self, after: timedelta = timedelta()) -> None:
        """A scheduler that has just been started sees to everything, so long after now."""
        self.now += after
        tick(self.scheduler())

    @property
    def journal(self) -> Journal:
        table = load_schedules(str(self.file))
        return Journal(table.state, table.get("s"))

    def history(self) -> list[Entry]:
        return entries(self.journal, 100)

    def states(self) -> list[tuple[str, str]]:
        """(time, state), oldest first."""
        return [(e.nominal[11:16], e.state) for e in reversed(self.history())]

    def counted(self, name: str) -> float:
        """What metrics tell."""
        counters = Counters(self.site.client, self.site.settings.key_prefix)
        return counters.read([(name,)])[(name,)]

    def finish(self, entry: Entry) -> None:
        """Have the run of a nominal time end."""
        cancel(entry.run_id, installation(self.site.settings))


def tick(scheduler: Scheduler) -> None:
    for thread in scheduler.tick():
        thread.join()


@pytest.fixture
def plant(site: Site) -> Plant:
    return planted(Plant(site, str(site.folder)))


def planted(plant: Plant) -> Plant:
    plant.manifest()
    plant.write()
    plant.tick()  # sees the schedule for the first time
    return plant


def test_all_of_it_may_lie_in_a_bucket(site: Site, bucket: str) -> None:
    plant = planted(Plant(site, bucket))
    plant.tick(MINUTE)
    plant.tick(MINUTE)
    plant.finish(plant.history()[-1])
    plant.tick()
    assert plant.states() == [("12:00", "cancelled"), ("12:01", "skipped")]
    assert plant.history()[-1].out == f"{bucket}/o/2026-11-26/1200"
    assert plant.journal.opened() == []


def test_what_is_due_is_rendered(plant: Plant) -> None:
    plant.site.start_worker("null")
    plant.tick(MINUTE)
    (entry,) = plant.history()
    assert entry.out == f"{plant.site.folder}/o/2026-11-26/1200"
    eventually(lambda: plant.history()[0].state == "finished")
    plant.tick()
    assert plant.journal.opened() == []
    assert [one.what for one in plant.told if one.subject == "s"] == ["begun", "finished"]
    assert plant.counted("schedule_begun") == 1
    assert (plant.history()[0].done, overview(plant.journal, plant.now).paused) == (1, "")


def test_schedulers_side_by_side_and_clocks_that_jump_submit_once(plant: Plant) -> None:
    plant.write(catchup="all", overlap="allow")
    schedulers = [plant.scheduler() for _ in range(3)]
    jumps = (MINUTE, MINUTE, 5 * MINUTE, -4 * MINUTE, MINUTE, -30 * MINUTE, 32 * MINUTE)
    with ThreadPoolExecutor(3) as threads:
        for jump in jumps:
            plant.now += jump
            for _ in range(2):  # who comes too late the first time
                list(threads.map(tick, schedulers))
            # Whoever would submit a second time would submit something else.
            plant.manifest(f"changed {jump}")
    expected = [f"12:0{minute}" for minute in range(7)]
    # The schedule is older than its first jump back: those times count from then on.
    found = [(time, state) for time, state in plant.states() if time >= "12:00"]
    assert found[:7] == [(time, "running") for time in expected]
    runs = [entry.run_id for entry in plant.history()]
    assert sorted(runs) == sorted(plant.site.runs.listed(1000))


def test_a_decision_that_was_not_launched_is_launched_as_it_is(plant: Plant) -> None:
    """Its scheduler died in between, and the manifest is another since."""
    plant.journal.note(key(NOON), Opened())
    plant.firing()._begin(plant.journal, key(NOON), Opened())
    plant.manifest("changed")
    (entry,) = plant.history()
    assert plant.site.runs.listed() == []
    plant.tick()
    assert plant.site.runs.listed() == [entry.run_id]
    assert plant.site.progress(entry.run_id).state == "running"


def test_the_loser_of_two_that_planned_launches_the_winners_run(plant: Plant) -> None:
    plant.now += MINUTE
    nominal = key(NOON)
    first, second = plant.firing(), plant.firing()
    won = first._begin(plant.journal, nominal, Opened())
    plant.manifest("changed")
    assert second._begin(plant.journal, nominal, Opened()) == won
    plant.journal.note(nominal, Opened())
    second.tend(plant.journal)
    assert plant.site.runs.listed() == [won.run_id]
    summary = read_summary(open_storage(won.out))
    assert summary is not None
    assert summary.run_id == won.run_id


def test_a_wiped_broker_loses_no_run_and_no_pause(plant: Plant) -> None:
    plant.tick(MINUTE)
    plant.site.client.flushall()
    plant.site.start_worker("null")
    plant.journal.pause(Pause("now", "a test"))
    plant.tick(MINUTE)
    eventually(lambda: plant.states() == [("12:00", "finished")])
    shown = overview(plant.journal, plant.now)
    assert (shown.paused, shown.next) == ("a test, since now", "")
    plant.journal.resume(plant.now)
    assert overview(plant.journal, plant.now).next


def test_an_earlier_run_has_later_ones_skipped(plant: Plant) -> None:
    plant.tick(MINUTE)
    plant.tick(MINUTE)
    assert plant.states() == [("12:00", "running"), ("12:01", "skipped")]
    plant.finish(plant.history()[-1])
    plant.tick(MINUTE)
    states = [("12:00", "cancelled"), ("12:01", "skipped"), ("12:02", "running")]
    assert plant.states() == states


def test_a_queue_has_later_ones_wait_however_long(plant: Plant) -> None:
    plant.write(overlap="queue", catchup="none")
    for _ in range(3):
        plant.tick(MINUTE)
    assert [state for _, state in plant.states()] == ["running", "waiting", "waiting"]
    plant.write(overlap="queue", catchup="none", cron="0 0 1 1 *")
    plant.now += timedelta(days=2)
    for left in (["running", "waiting"], ["running"]):
        plant.finish(next(e for e in plant.history() if e.state == "running"))
        plant.tick()
        assert [state for _, state in plant.states() if state != "cancelled"] == left


def test_two_runs_never_write_to_one_place_at_a_time(plant: Plant) -> None:
    plant.write(cron="0 12 * * *", out="o/{date}", overlap="allow")
    plant.tick()
    plant.tick(MINUTE)
    (entry,) = plant.history()
    with pytest.raises(UsageError, match=rf"run {entry.run_id} goes on in .*o/2026-11-26"):
        plant.firing().fire(plant.journal, key(plant.now))
    assert plant.states() == [("12:00", "running")]
    plant.finish(entry)
    fire = plant.firing().fire(plant.journal, key(plant.now))
    assert fire.manual
    assert fire.run_id != entry.run_id
    assert plant.states() == [("12:00", "cancelled"), ("12:00", "running")]


def test_failures_in_a_row_pause_a_schedule_and_resume_makes_nothing_up(plant: Plant) -> None:
    plant.write(manifest="absent.jsonl", pause_after_failures=2, catchup="all")
    for _ in range(4):
        plant.tick(MINUTE)
    assert plant.states() == [("12:00", "refused"), ("12:01", "refused")]
    assert plant.counted("schedule_failures") == 2
    assert "absent.jsonl does not exist" in plant.history()[0].reason
    assert overview(plant.journal, plant.now).paused.startswith("2 failures in a row")
    plant.write(catchup="all")
    plant.journal.resume(plant.now)
    plant.tick()
    plant.tick(MINUTE)
    assert plant.states()[2:] == [("12:04", "running")]


def test_a_refused_run_now_is_the_callers_matter(plant: Plant) -> None:
    plant.write(manifest="absent.jsonl", pause_after_failures=1)
    with pytest.raises(UsageError, match="does not exist"):
        plant.firing().fire(plant.journal, key(plant.now))
    assert (plant.history(), plant.journal.paused()) == ([], None)


def test_what_waits_for_a_person_says_why_and_goes_on(plant: Plant) -> None:
    (plant.site.folder / "o").write_text("a file where a folder is needed")
    plant.tick(MINUTE)
    (entry,) = plant.history()
    assert (entry.state, "a file where a folder is needed" in entry.reason) == ("waiting", True)
    (plant.site.folder / "o").unlink()
    plant.tick(timedelta(hours=2))  # longer than it would be made up otherwise
    assert plant.states()[0] == ("12:00", "running")


def test_a_lost_output_ends_its_run(plant: Plant) -> None:
    plant.tick(MINUTE)
    open_storage(plant.history()[0].out).remove("")
    plant.site.client.flushall()
    plant.tick()
    assert plant.states() == [("12:00", "removed")]


def test_a_broker_that_is_away_makes_times_wait_not_miss(plant: Plant) -> None:
    plant.write(catchup="none")
    away = plant.scheduler()
    gone = plant.site.settings.model_copy(update={"broker": "redis://127.0.0.1:1"})
    away.firing = replace(away.firing, known=installation(gone))
    plant.now += MINUTE
    tick(away)
    assert plant.states() == [("12:00", "waiting")]
    assert any("cannot be reached" in news.text for news in plant.told)
    plant.tick(timedelta(hours=1))
    assert ("12:00", "running") in plant.states()


def test_a_schedule_that_hangs_costs_no_other(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = plant.file.read_text().partition("[schedules.s]")[2].replace("o/{date}", "p/{date}")
    plant.file.write_text(f"{plant.file.read_text()}\n[schedules.hangs]{row}")
    plant.tick()
    hanging, begin = Event(), Firing._begin

    def hang(self: Firing, journal: Journal, nominal: str, opened: Opened) -> Fire:
        if journal.schedule.name == "hangs":
            hanging.wait()
        return begin(self, journal, nominal, opened)

    monkeypatch.setattr(Firing, "_begin", hang)
    scheduler = plant.scheduler()
    plant.now += MINUTE
    threads = scheduler.tick()
    eventually(lambda: plant.states() == [("12:00", "running")])
    plant.now += MINUTE

    def is_skipped() -> bool:
        threads.extend(scheduler.tick())  # which leaves it alone while it is seen to
        return plant.states()[1:] == [("12:01", "skipped")]

    eventually(is_skipped)
    hangs = Journal(plant.journal.storage, load_schedules(str(plant.file)).get("hangs"))
    assert [(e.nominal[11:16], e.state) for e in entries(hangs, 9)] == [
        ("12:01", "waiting"),
        ("12:00", "waiting"),
    ]
    hanging.set()
    for thread in threads:
        thread.join()
    assert entries(hangs, 9)[1].state == "running"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("state = 1", "state: input should be a valid string"),
        ("state = 'gcss://b/state'", "state: location 'gcss://b/state': Protocol not known: gcss"),
    ],
)
def test_a_file_that_breaks_leaves_the_schedules_as_they_were(
    plant: Plant, wrong: str, complaint: str
) -> None:
    scheduler = plant.scheduler()
    scheduler.reload_seconds = 0
    tick(scheduler)
    rows = plant.file.read_text().partition("\n")[2]
    plant.file.write_text(f"{wrong}\n{rows}")
    plant.now += MINUTE
    tick(scheduler)
    assert complaint in plant.told[-2].text
    assert (plant.told[-1].subject, plant.told[-1].what) == ("s", "begun")
