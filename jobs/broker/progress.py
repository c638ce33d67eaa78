"""Where a run stands, by what Redis has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson
import redis

from jobs.broker.keys import COST, SUSPECTS
from jobs.teams import OPEN_TEAM, Priority

State = Literal["running", "paused", "cancelled", "finished"]

ASKED = 4  # questions whose answers make a run's progress


@dataclass(frozen=True, slots=True)
class Effort:
    """What devices did for a run.

    seconds: of pipeline calls; span: the same with what the devices waited between them; slots:
    what the calls had room for; images: what they made.
    """

    seconds: float = 0.0
    span: float = 0.0
    slots: int = 0
    images: int = 0

    @property
    def busy(self) -> float:
        """The share of the devices' time in which they rendered; 0 if it is not known."""
        return min(1.0, self.seconds / self.span) if self.span else 0.0

    @property
    def useful(self) -> float:
        """The share of the rendered slots that became images; 0 if it is not known."""
        return self.images / self.slots if self.slots else 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of one run. `done` and `failed` cover all requests, those of earlier tries included.
    Of a run that chooses they are of candidates, as many as are known to be needed, until it has
    finished, then of images.

    problem: why the run is paused, and what to do; empty if it was not. retries: attempts at
    chunks beyond the first; deaths: those among the attempts that no worker has ended; suspects:
    requests that may have killed a worker; models: what the run needs workers for; effort: of the
    chunks that are complete; costs: of these the device seconds by model; begun_at: when it was
    made live last, in Unix seconds, 0 if that is not known.
    """

    run_id: str
    out: str
    state: State
    epoch: int
    requests: int
    chunks: int
    chunks_done: int
    done: int
    failed: int
    problem: str
    retries: int = 0
    deaths: int = 0
    suspects: int = 0
    models: tuple[str, ...] = ()
    effort: Effort = Effort()
    team: str = OPEN_TEAM
    priority: Priority = "normal"
    costs: dict[str, float] = field(default_factory=dict)
    chooses: bool = False
    begun_at: float = 0.0

    @property
    def settled(self) -> int:
        return self.done + self.failed

    @property
    def choosing(self) -> bool:
        """Whether scores decide now which candidates come next, if any."""
        return self.chooses and self.state == "running" and not self.pending

    @property
    def pending(self) -> int:
        return max(0, self.requests - self.settled)


def ask(pipe: redis.client.Pipeline, key: str) -> None:
    """Have a pipeline ask ASKED things about the run of a key, whose answers `read` takes."""
    pipe.hgetall(key)
    pipe.bitcount(f"{key}:chunks")
    pipe.hvals(f"{key}:busy")
    pipe.hlen(f"{key}{SUSPECTS}")


def read(run_id: str, answers: Sequence[Any]) -> Progress | None:
    """What the answers say of a run; None if Redis does not know it. Check first who wrote them."""
    fields, chunks_done, busy, suspects = answers
    if not fields:
        return None
    text = {name.decode(): value.decode() for name, value in fields.items()}
    under_way = [tuple(map(int, value.split()[:2])) for value in busy]
    return Progress(
        run_id=run_id,
        out=text["out"],
        state=cast("State", text["state"]),
        epoch=int(text["epoch"]),
        requests=int(text["requests"]),
        chunks=int(text["chunks"]),
        chunks_done=int(chunks_done),
        done=int(text["done"]) + sum(done for done, _ in under_way),
        failed=int(text["failed"]) + sum(failed for _, failed in under_way),
        problem=text["problem"],
        retries=int(text.get("retries", 0)),
        deaths=int(text.get("deaths", 0)),
        suspects=int(suspects),
        models=tuple(orjson.loads(text["models"])),
        effort=Effort(
            float(text.get("device_seconds", 0)),
            float(text.get("device_span", 0)),
            int(text.get("device_slots", 0)),
            int(text.get("device_images", 0)),
        ),
        team=text.get("team", OPEN_TEAM),
        priority=cast("Priority", text.get("priority", "normal")),
        costs={
            name.removeprefix(COST): float(value)
            for name, value in text.items()
            if name.startswith(COST)
        },
        chooses=text.get("chooses") == "1",
        begun_at=float(text.get("begun_at", 0)),
    )
