"""Three schedulers, killed at random, with a clock that jumps."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.output.storage import open_storage
from producer.schedules.journal import Journal
from producer.schedules.table import load_schedules
from tests.chaos.ledger import Ledger
from tests.sites import Site
from tests.support import eventually

START = datetime(2026, 11, 26, 11, 59, 30, tzinfo=UTC).timestamp()
NAMES = ["a", "b", "c", "d"]
FILE, CLOCK = "schedules.toml", "clock"


class Schedulers:
    """Three of them; one that is killed is started again at once."""

    def __init__(self, site: Site) -> None:
        self.site, self.running = site, list[subprocess.Popen[bytes]]()
        self.log = site.folder / "schedulers.log"

    def start(self) -> None:
        command = [sys.executable, Path(__file__).with_name("scheduler.py"), FILE, CLOCK]
        own = {"PYTHONPATH": str(Path(__file__).parents[2])}
        with self.log.open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    command,
                    cwd=self.site.folder,
                    env=os.environ | self.site.settings.environment() | own,
                    stdout=log,
                    stderr=log,
                )
            )

    def kill(self, victim: subprocess.Popen[bytes]) -> None:
        assert victim.poll() is None, self.log.read_text()
        victim.kill()
        victim.wait()
        self.running.remove(victim)


def set_clock(site: Site, moment: float) -> None:
    (site.folder / "new-clock").write_text(str(moment))
    (site.folder / "new-clock").replace(site.folder / CLOCK)


def change_manifest(site: Site, number: int) -> None:
    """Whoever submitted a second time would submit something else, as another run."""
    (site.folder / "new").write_text(f'{{"prompt": "a red circle", "seed": {number}}}\n')
    (site.folder / "new").replace(site.folder / "m.jsonl")


@pytest.mark.parametrize("fires", [40, pytest.param(1000, marks=pytest.mark.chaos)])
def test_schedulers_are_killed(site: Site, ledger: Ledger, dice: random.Random, fires: int) -> None:
    """three schedulers get kill -9 at random moments, and their clock jumps."""
    rows = [
        f'[schedules.{name}]\ncron = "* * * * *"\nmanifest = "m.jsonl"\ncatchup = "all"\n'
        f'overlap = "allow"\nout = "{{name}}/{{date}}/{{time}}"\n'
        for name in NAMES
    ]
    (site.folder / FILE).write_text("\n".join(['state = "state"', *rows]))
    minutes, now = fires // len(NAMES), START
    set_clock(site, now)
    change_manifest(site, 0)
    site.start_worker("null")
    schedulers = Schedulers(site)
    try:
        for _ in range(3):
            schedulers.start()
        since = [site.folder / "state" / name / "since" for name in NAMES]
        eventually(lambda: all(folder.is_dir() and list(folder.glob("[!.]*")) for folder in since))
        step = 0
        while now < START + minutes * 60:
            jump = dice.choice((20, 40, 60, 90, 150, 300, -50, -200))
            now = min(max(now + jump, START), START + minutes * 60)
            set_clock(site, now)
            step += 1
            change_manifest(site, step)
            time.sleep(dice.uniform(0, 0.4))  # a random moment of what they do
            if dice.random() < 0.5:
                schedulers.kill(dice.choice(schedulers.running))
                schedulers.start()
                ledger.times += 1
        journals = [journal(site, name) for name in NAMES]
        eventually(
            lambda: all(is_done(one, minutes) for one in journals), 1800
        )  # of a busy machine
    finally:
        for one in list(schedulers.running):
            one.kill()
            one.wait()
    outs = Counter(
        site.client.hget(f"{site.settings.key_prefix}run:{run_id}", "out")
        for run_id in site.runs.listed(10 * fires)
    )
    expected = {
        f"{site.folder}/{name}/2026-11-26/{12 + minute // 60:02d}{minute % 60:02d}".encode()
        for name in NAMES
        for minute in range(minutes)
    }
    ledger.fault = (
        f"kill -9 of one of three schedulers, {fires:,} nominal times, a clock that jumps"
    )
    ledger.lost = len(expected - set(outs))
    ledger.doubled = sum(outs.values()) - len(set(outs))
    assert (ledger.lost, ledger.doubled) == (0, 0)
    assert set(outs) == expected
    for out in expected:
        assert len(open_storage(out.decode()).read("metadata.jsonl").splitlines()) == 1


def journal(site: Site, name: str) -> Journal:
    table = load_schedules(str(site.folder / FILE))
    return Journal(open_storage(f"{site.folder}/state"), table.get(name))


def is_done(journal: Journal, minutes: int) -> bool:
    """Whether all its nominal times are at their end."""
    ends = Path(journal.storage.uri, journal.schedule.name, "ends")
    return not journal.opened() and len(list(ends.glob("*/[!.]*.json"))) >= minutes
