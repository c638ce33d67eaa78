"""How runs and teams share devices, in simulated hours.

    python -m benchmarks.fair_share [--devices 8] [--hours 2]

Starts a private Valkey. Devices and their clock are simulated: each takes messages in a worker's
order, two seconds before its chunk ends, has worker.tasks.feed give out turns, and is busy with a
chunk for its seconds, give or take 5 %; plans guess them by a factor of 0.5 to 2. Nothing is
rendered, and nothing stored but plans. Prints the shares of two teams in every window of five
minutes, what a short run waits behind a long one, when a run of high priority begins, and how often
models are loaded.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.measure import report
from jobs.broker.dispatch import start_run
from jobs.broker.fleet import Worker
from jobs.broker.messages import RENDER, make, parse
from jobs.broker.progress import Effort
from jobs.broker.queues import queue_names
from jobs.output.plan import Chunk, Plan, Shard, write_plan
from jobs.output.storage import open_storage
from jobs.settings import load_settings
from jobs.teams import Priority
from producer.local.embedded import Crew, embedded
from worker.storing import Shelf
from worker.tasks import LEAD_SECONDS, PutBack, feed
from worker.workshop import Workshop, make_workshop

SHARD_CHUNKS = 128
WINDOW, STEP = 300.0, 5.0  # seconds: five minutes, from every fifth second on
LOAD_SECONDS = 30.0  # of a model; a device keeps one
MODELS = ("null", "shapes")  # names alone: neither is loaded
LONG = 33_334  # chunks: 1,000,000 lines of a second each
SHORT = 4  # 100 lines, 25 a chunk


@dataclass(frozen=True, slots=True)
class Job:
    """A run: how many chunks, of how many seconds each, and when it comes."""

    name: str
    team: str
    chunks: int
    seconds: float = 30.0
    at: float = 0.0
    priority: Priority = "normal"
    model: str = MODELS[0]


@dataclass(frozen=True, slots=True)
class Spell:
    """What a device did from `start` to `end`, in seconds."""

    job: Job
    start: float
    end: float


@dataclass
class Simulation:
    """So many devices, each with a workshop. warm: they tell which model they have loaded."""

    shops: list[Workshop]
    folder: str
    warm: bool = True
    now: float = 0.0
    loads: int = 0
    spells: list[Spell] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)
    _free: dict[str, float] = field(default_factory=dict)
    _loaded: dict[str, str] = field(default_factory=dict)

    def run(self, jobs: list[Job], seconds: float) -> list[Spell]:
        """Let so much time pass; returns what the devices did."""
        self.shops[0].runs.client.flushall()
        for job in jobs:
            self._at(job.at, partial(self._submit, job))
        for shop in self.shops:
            shop.turns = replace(shop.turns, now=lambda: self.now)
            self._tell(shop)
            self._at(0.0, partial(self._ask, shop))
        while self._events and self._events[0][0] < seconds:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.spells

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _submit(self, job: Job) -> None:
        self.jobs[job.name] = job
        chunks = [
            Chunk(job.model, n % SHARD_CHUNKS, n % SHARD_CHUNKS + 1) for n in range(job.chunks)
        ]
        shards = tuple(
            Shard(SHARD_CHUNKS, tuple(chunks[first : first + SHARD_CHUNKS]))
            for first in range(0, job.chunks, SHARD_CHUNKS)
        )
        plan = Plan(
            run_id=job.name,
            manifest="m.jsonl",
            seed=0,
            created_at="",
            fingerprints={},
            shards=shards,
            team=job.team,
            priority=job.priority,
            seconds=job.chunks * job.seconds * random.uniform(0.5, 2.0),
        )
        storage = open_storage(f"{self.folder}/{id(self)}/{job.name}")
        write_plan(storage, plan)
        start_run(plan, storage, self.shops[0].runs, self.shops[0].dispatcher)

    def _ask(self, shop: Workshop) -> None:
        """A device takes its next chunk, or looks again in a second."""
        prefix = shop.runs.prefix
        queues = [f"{prefix}{name}" for name in queue_names(MODELS)]
        while taken := cast("Any", shop.runs.client.lmpop(len(queues), *queues, direction="RIGHT")):
            message = parse(taken[1][0])
            if message.task == RENDER:
                self._render(shop, *message.arguments)
                return
            try:
                feed(shop, lambda: None, *message.arguments)
            except PutBack:
                shop.runs.client.lpush(f"{prefix}{message.queue}", make(message))
        self._at(self.now + 1.0, partial(self._ask, shop))

    def _render(self, shop: Workshop, run_id: str, _: int, shard: int, chunk: int) -> None:
        job = self.jobs[run_id]
        start = max(self.now, self._free.get(shop.name, 0.0))
        if self._loaded.get(shop.name) != job.model:
            self._loaded[shop.name] = job.model
            self.loads += 1
            start += LOAD_SECONDS
            self._tell(shop)
        seconds = job.seconds * random.uniform(0.95, 1.05)
        end = self._free[shop.name] = start + seconds
        self.spells.append(Spell(job, start, end))

        def store() -> None:
            shop.runs.spend(run_id, job.model, Effort(seconds))
            shop.turns.settle(run_id, seconds)
            shop.runs.attempts.complete(run_id, shard * SHARD_CHUNKS + chunk, 1, 0)

        self._at(end, store)
        self._at(max(start, end - LEAD_SECONDS), partial(self._ask, shop))

    def _tell(self, shop: Workshop) -> None:
        loaded = {self._loaded[shop.name]} if self.warm and shop.name in self._loaded else ()
        shop.renderers = cast("Any", SimpleNamespace(loaded=frozenset(loaded)))


def shares(spells: list[Spell], team: str, seconds: float) -> str:
    """A team's share of the device seconds in all windows: the least and the most."""
    found = []
    for step in range(int((seconds - WINDOW) / STEP)):
        begin = LOAD_SECONDS + step * STEP
        spent = [
            (spell.job.team, max(0.0, min(spell.end, begin + WINDOW) - max(spell.start, begin)))
            for spell in spells
            if spell.start < begin + WINDOW and spell.end > begin
        ]
        found.append(
            sum(some for whose, some in spent if whose == team) / sum(some for _, some in spent)
        )
    return f"{min(found):.1%} to {max(found):.1%} in {len(found)} windows"


def two_teams(simulation: Simulation, seconds: float, chunk: float) -> str:
    """Ten long runs of one team beside a long one of another, whose chunks take `chunk` seconds."""
    jobs = [Job(f"many-{n}", "many", LONG) for n in range(10)] + [Job("one", "one", LONG, chunk)]
    return shares(simulation.run(jobs, seconds), "one", seconds - LOAD_SECONDS)


def short_behind_long(simulation: Simulation, team: str) -> str:
    """A run of 100 lines comes when one of a million has gone on for half an hour."""
    devices = len(simulation.shops)
    came = 1800.0 + random.uniform(0, 30)
    short = Job("short", team, SHORT, 25.0, at=came)
    spells = simulation.run([Job("long", "long", LONG), short], came + 900)
    own = [spell for spell in spells if spell.job.name == "short"]
    work = sum(spell.end - spell.start for spell in own)
    most = work / max(1.0, devices / 2) + 60.0
    return (
        f"starts after {min(spell.start for spell in own) - came:.1f} s, ends after "
        f"{max(spell.end for spell in own) - came:.1f} s "
        f"(own work ÷ its share + 2 chunks: {most:.1f} s)"
    )


def high_overtakes(simulation: Simulation) -> str:
    """A run of high priority, of a team that has used most, comes into a busy fleet."""
    came = 1800.0
    jobs = [
        Job("a", "a", LONG),
        Job("b", "b", LONG),
        Job("high", "a", 50, at=came, priority="high"),
    ]
    spells = simulation.run(jobs, came + 900)
    begun = [spell for spell in spells if spell.start >= came]
    own = [number for number, spell in enumerate(begun) if spell.job.name == "high"]
    return (
        f"starts after {begun[own[0]].start - came:.1f} s; of others begin before its first chunk "
        f"{own[0]}, between that and its last {own[-1] - own[0] + 1 - len(own)}"
    )


def two_models(simulation: Simulation, seconds: float) -> str:
    """Two teams, each with a model of its own."""
    jobs = [Job("a", "a", LONG), Job("b", "b", LONG, model=MODELS[1])]
    spells = simulation.run(jobs, seconds)
    busy = sum(spell.end - spell.start for spell in spells) / len(simulation.shops) / seconds
    return f"{simulation.loads} loads, devices busy {busy:.1%}, {shares(spells, 'a', seconds)}"


def score_nothing(*_: object) -> dict[str, str]:
    """No run asks for scores."""
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--hours", type=float, default=2.0)
    options = parser.parse_args()
    seconds = options.hours * 3600
    with tempfile.TemporaryDirectory() as folder, embedded(load_settings(), Crew("cpu")) as own:
        os.environ.update(own.settings.environment())

        def devices(number: int, warm: bool = True) -> Simulation:
            random.seed(number)
            workers = [
                Worker(name=f"d{n}", models=MODELS, device="cpu", host="host", pid=n)
                for n in range(number)
            ]
            shops = [make_workshop(one, Shelf.put_all, score_nothing) for one in workers]
            return Simulation(shops, folder, warm)

        lines = []
        for number in (options.devices, 1):
            found = {
                "ten runs beside one, which has": two_teams(devices(number), seconds, 30.0),
                "… and whose chunks are 4K images": two_teams(devices(number), seconds, 64.0),
                "100 lines behind 1M, two teams": short_behind_long(devices(number), "short"),
                "100 lines behind 1M, one team": short_behind_long(devices(number), "long"),
                "high priority": high_overtakes(devices(number)),
                "two models": two_models(devices(number), seconds),
                "… nobody told what is loaded": two_models(devices(number, False), seconds),
            }
            lines.append(f"{number} device(s), chunks of 30 s, a 4K image of 64 s:")
            lines += [f"  {name:34}{figure}" for name, figure in found.items()]
    report("Fair share", lines)


if __name__ == "__main__":
    main()
