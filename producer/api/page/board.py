"""The runs that a visitor sees: where each stands, whose it is, and how fast it goes."""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from anyio import CapacityLimiter

from jobs.broker.progress import Progress, State
from jobs.errors import InvalidRequest
from jobs.output.storage import Storage
from jobs.teams import OPEN_TEAM
from producer.api.page.visits import Visitor
from producer.api.wire.threads import in_thread
from producer.control.installation import Installation
from producer.control.progress import Pace

LOOK_SECONDS = 1.0  # what several visitors are told of one look

_BATCH = re.compile(r"(?P<team>[A-Za-z0-9_-]+)/(?P<batch>[A-Za-z0-9_-]+)/out")


@dataclass(frozen=True, slots=True)
class Standing:
    """One run. team: whose it is; batch: whether it renders one of /openai/v1/batches; rate: images
    a second, None where nobody knows; heir: the run that has taken its place over, "" for none."""

    progress: Progress
    team: str
    name: str
    batch: bool
    rate: float | None
    heir: str = ""

    @property
    def live(self) -> bool:
        """Whether it may still get images."""
        return self.progress.state in ("running", "paused")

    @property
    def share(self) -> float:
        """How much of it is settled, in [0, 1]."""
        return min(1.0, self.progress.settled / max(1, self.progress.requests))

    @property
    def seconds_left(self) -> float | None:
        """Until its last image, as far as its pace tells."""
        if not self.rate or self.progress.state != "running":
            return None
        return self.progress.pending / self.rate


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are shown: `text` is in their name, team or models; "" shows all."""

    text: str = ""
    state: State | Literal[""] = ""

    def takes(self, run: Standing) -> bool:
        """Whether a run is one of them."""
        places = (run.name, run.team, run.progress.run_id, *run.progress.models)
        text = self.text.casefold()
        return self.state in ("", run.progress.state) and any(
            text in place.casefold() for place in places
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Device seconds of some runs, the most first: by model, and by team."""

    by_model: list[tuple[str, float]]
    by_team: list[tuple[str, float]]


def costs(runs: Sequence[Standing]) -> Costs:
    """What the devices did for runs, as far as the broker knows it of each model."""
    models, teams = defaultdict[str, float](float), defaultdict[str, float](float)
    for run in runs:
        if run.progress.effort.seconds:
            teams[run.progress.team] += run.progress.effort.seconds
        for model, seconds in run.progress.costs.items():
            models[model] += seconds
    return Costs(_most_first(models), _most_first(teams))


def _most_first(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda one: (-one[1], one[0]))


@dataclass
class Board:
    """What the broker knows of an installation's runs, looked at when somebody asks.

    store: the facade's, which tells whose a run is; planning: for what plans a run, one at a time,
    as that takes 300 MB for a large one. Raises redis.RedisError when Redis is away.
    """

    known: Installation
    store: Storage
    planning: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _looked: float = float("-inf")
    _found: list[Standing] = field(default_factory=list)
    _paces: dict[str, Pace] = field(default_factory=dict)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def runs(self, visitor: Visitor) -> list[Standing]:
        """The runs that a visitor sees, the newest first."""
        async with self._looking:
            if time.monotonic() - self._looked > LOOK_SECONDS:
                found = await in_thread(self.known.runs.newest)
                self._looked = time.monotonic()
                paces = {one.run_id: self._paces.get(one.run_id, Pace()) for one in found}
                self._paces = paces
                latest = dict[str, str]()  # of each place, as the newest come first
                self._found = [
                    replace(
                        self._standing(one, paces[one.run_id].rate(one.settled)),
                        heir=""
                        if latest.setdefault(one.out, one.run_id) == one.run_id
                        else latest[one.out],
                    )
                    for one in found
                ]
        return [one for one in self._found if visitor.sees(one.team)]

    async def run(self, run_id: str, visitor: Visitor) -> Standing:
        """One run. Raises InvalidRequest, code not_found, if the visitor sees no such run."""
        for standing in await self.runs(visitor):
            if standing.progress.run_id == run_id:
                return standing
        progress = await in_thread(self.known.runs.progress, run_id)
        if progress is not None:  # an old one
            standing = self._standing(progress, None)
            if visitor.sees(standing.team):
                return standing
        raise InvalidRequest("", f"there is no run {run_id!r}", "not_found")

    def forget(self) -> None:
        """Look again when somebody asks: something was changed."""
        self._looked = float("-inf")

    def _standing(self, progress: Progress, rate: float | None) -> Standing:
        """Whose a run is, and what it is called, is told by its output location.

        A batch lies in its team's folder of the store. Whoever submits a run to the broker
        directly is of no team: it belongs to those whose key names none.
        """
        out, batches = progress.out, f"{self.store.uri}/batches/"
        rate = rate if progress.state == "running" else None
        if out.startswith(batches) and (found := _BATCH.fullmatch(out.removeprefix(batches))):
            return Standing(progress, found["team"], found["batch"], True, rate)
        return Standing(progress, OPEN_TEAM, out.rpartition("/")[2], False, rate)
