"""How following a run ends, on a real broker."""

from __future__ import annotations

import pytest

from jobs.broker.connection import connect
from jobs.broker.progress import Progress
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.errors import FatalError, TransientError
from jobs.output.plan import Chunk, Shard
from jobs.settings import Settings
from producer.control.progress import follow
from tests.samples import make_plan

PLAN = make_plan("0123456789ab", shards=(Shard(8, (Chunk("null", 0, 8),)),))


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.progress: list[Progress] = []

    def planning(self, lines: int) -> None:
        raise AssertionError(f"no planning is followed, {lines}")

    def rendering(self, progress: Progress, rate: float | None) -> None:  # noqa: ARG002
        self.progress.append(progress)


@pytest.fixture
def runs(broker: str) -> Runs:
    settings = Settings(broker=broker)
    runs = Runs(connect(settings), settings.key_prefix, NO_SEAL)
    runs.open(PLAN, "/out", [])
    return runs


def test_finished_run_ends(runs: Runs) -> None:
    runs.finish(PLAN.run_id, 7, 1)
    seen = Seen()
    assert follow(runs, PLAN.run_id, seen).state == "finished"
    assert [(p.done, p.failed) for p in seen.progress] == [(7, 1)]


def test_paused_run_says_why(runs: Runs) -> None:
    runs.pause(PLAN.run_id, "storage /out is full\nFree some space.")
    with pytest.raises(FatalError, match=r"(?s)storage /out is full.*Free some space"):
        follow(runs, PLAN.run_id, Seen())


def test_forgotten_run_points_to_storage(runs: Runs) -> None:
    runs.client.flushall()
    with pytest.raises(TransientError, match="not known to the broker"):
        follow(runs, PLAN.run_id, Seen())


def test_check_ends_the_wait(runs: Runs) -> None:
    def check() -> None:
        raise FatalError("the workers ended")

    with pytest.raises(FatalError, match="the workers ended"):
        follow(runs, PLAN.run_id, Seen(), check)
