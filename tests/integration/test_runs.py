"""The live state of a run in a real Valkey."""

import time
from dataclasses import replace

import pytest

from jobs.broker.attempts import Attempt
from jobs.broker.backlog import Backlog
from jobs.broker.connection import connect
from jobs.broker.dispatch import Dispatcher
from jobs.broker.keys import KEEP_SECONDS
from jobs.broker.runs import Runs
from jobs.broker.seals import NO_SEAL
from jobs.output.plan import Chunk, Plan, Shard
from jobs.settings import Settings
from tests.sites import queue_chunks

PLAN = Plan(
    run_id="abc",
    manifest="m",
    seed=0,
    created_at="",
    fingerprints={},
    shards=(Shard(30, (Chunk("a", 0, 10), Chunk("b", 10, 20))), Shard(10, (Chunk("a", 0, 10),))),
    reused=10,
)


@pytest.fixture
def runs(broker: str) -> Runs:
    return Runs(connect(Settings(broker=broker)), "test:", NO_SEAL)


def test_an_unknown_run_has_no_progress(runs: Runs) -> None:
    assert runs.progress("nope") is None
    assert runs.location("nope", 1) is None


def test_counts_start_with_what_storage_holds(runs: Runs) -> None:
    runs.open(PLAN, "out", [(2, 10)])
    progress = runs.progress("abc")
    assert progress is not None
    assert (progress.requests, progress.done, progress.chunks_done) == (40, 20, 1)
    assert (progress.state, progress.out, progress.pending) == ("running", "out", 20)


def test_a_chunk_counts_once_and_the_last_one_says_so(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    assert not runs.attempts.complete("abc", 0, 9, 1)
    assert not runs.attempts.complete("abc", 0, 9, 1)
    assert not runs.attempts.complete("abc", 1, 10, 0)
    assert runs.attempts.complete("abc", 2, 10, 0)
    assert runs.attempts.complete("abc", 2, 10, 0), "a redelivered last chunk must finalize again"
    progress = runs.progress("abc")
    assert progress is not None
    assert (progress.done, progress.failed, progress.pending) == (39, 1, 0)


def test_chunks_under_way_count_until_they_are_released(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    attempt = runs.attempts.begin("abc", 1)
    runs.attempts.report("abc", 1, attempt, 4, 1)
    progress = runs.progress("abc")
    assert progress is not None
    assert (progress.done, progress.failed) == (14, 1)
    runs.attempts.release("abc", 1, attempt)
    progress = runs.progress("abc")
    assert progress is not None
    assert (progress.done, progress.failed) == (10, 0)


def test_an_attempt_that_never_ended_is_a_death(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    assert runs.attempts.begin("abc", 1) == Attempt(1, 0)
    runs.attempts.release("abc", 1, Attempt(1, 0))  # stopped, alive
    assert runs.attempts.begin("abc", 1) == Attempt(2, 0)
    assert runs.attempts.begin("abc", 1) == Attempt(3, 1)
    assert runs.attempts.begin("abc", 1) == Attempt(4, 2)
    runs.attempts.complete("abc", 1, 10, 0)
    progress = runs.progress("abc")
    assert progress is not None
    assert (progress.retries, progress.deaths) == (3, 2)


def test_an_attempt_that_ends_late_was_no_death(runs: Runs) -> None:
    """Its worker could not reach Redis while another one began the chunk again."""
    runs.open(PLAN, "out", [])
    first = runs.attempts.begin("abc", 1)
    assert runs.attempts.begin("abc", 1) == Attempt(2, 1)
    runs.attempts.release("abc", 1, first)
    progress = runs.progress("abc")
    assert progress
    assert (progress.retries, progress.deaths) == (1, 0)
    assert runs.attempts.begin("abc", 1) == Attempt(3, 1)  # the second one's


def test_an_attempt_that_ends_after_its_chunk_changes_nothing(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    runs.attempts.begin("abc", 1)
    second = runs.attempts.begin("abc", 1)
    runs.attempts.complete("abc", 1, 10, 0)
    runs.attempts.release("abc", 1, second)
    progress = runs.progress("abc")
    assert progress
    assert progress.deaths == 1


def test_a_run_is_listed_for_as_long_as_it_changes(runs: Runs) -> None:
    """Not for 30 days after its submission, at the next one."""
    runs.open(PLAN, "out", [])
    runs.open(replace(PLAN, run_id="gone"), "out", [])
    long_ago = time.time() - 2 * KEEP_SECONDS
    runs.client.zadd("test:runs", {"abc": long_ago, "gone": long_ago})
    runs.client.delete("test:run:gone")  # as its state expires after its last change
    runs.open(replace(PLAN, run_id="def"), "out", [])
    assert runs.listed() == ["def", "abc"]
    assert {name for name, _ in runs.live()} == {"def", "abc"}


def test_suspects_are_watched_until_they_are_trusted(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    runs.attempts.watch("abc", ["x", "y"])
    runs.attempts.watch("abc", ["x"])
    assert runs.attempts.suspects("abc", ["x", "y", "z"]) == [2, 1, 0]
    runs.attempts.trust("abc", ["x"])
    assert runs.attempts.suspects("abc", ["x", "y"]) == [0, 1]


def test_a_new_epoch_voids_the_old_one(runs: Runs) -> None:
    first = runs.open(PLAN, "out", [])
    second = runs.open(PLAN, "out", [])
    assert second == first + 1
    assert not runs.is_running("abc", first)
    assert runs.is_running("abc", second)


def test_a_pause_is_a_change(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    for change in (lambda: runs.pause("abc", "why"), lambda: runs.set_state("abc", "cancelled")):
        runs.client.expire("test:run:abc", 60)
        change()
        assert runs.client.ttl("test:run:abc") > KEEP_SECONDS - 60


@pytest.mark.parametrize("state", ["paused", "cancelled", "finished"])
def test_only_a_running_run_is_worked_on(runs: Runs, state: str) -> None:
    epoch = runs.open(PLAN, "out", [])
    runs.set_state("abc", state)  # type: ignore[arg-type]
    assert not runs.is_running("abc", epoch)


def test_runs_are_listed_newest_first(runs: Runs) -> None:
    runs.open(PLAN, "out", [])
    runs.open(replace(PLAN, run_id="def"), "out", [])
    assert runs.listed() == ["def", "abc"]


def test_messages_are_looked_through_page_by_page(runs: Runs) -> None:
    """The run whose only message waits behind a thousand others is not lost."""
    dispatcher = Dispatcher(runs.client, runs.prefix, NO_SEAL)
    epoch = runs.open(PLAN, "out", [])
    queue_chunks(dispatcher, "abc", epoch, 0, "null", [0])
    queue_chunks(dispatcher, "other", 1, 0, "null", range(1000))
    backlog = Backlog(runs.client, runs.prefix)
    assert [backlog.lost(runs, 10) for _ in range(2)] == [set(), set()]
    runs.client.rpop(f"{runs.prefix}bulk.null")
    assert [backlog.lost(runs, 10) for _ in range(2)] == [set(), {("abc", epoch)}]
