"""The live state of runs, in Redis: a flag that cancels, an epoch, counters. Never the truth.

Everything here can be rebuilt from a run's storage; that is what `imagemill resume` does.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import orjson
import redis

from jobs.broker.attempts import Attempts
from jobs.broker.keys import COST, KEEP_SECONDS, KEPT, SUSPECTS, entering, run_key, touch
from jobs.broker.progress import ASKED, Effort, Progress, State, ask, read
from jobs.broker.seals import Seal
from jobs.errors import FatalError
from jobs.output.plan import MAX_ROUNDS, Plan
from jobs.teams import Priority


@dataclass(frozen=True)
class Runs:
    """Access to the live state of all runs. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str
    seal: Seal

    @property
    def attempts(self) -> Attempts:
        """Of workers at their chunks."""
        return Attempts(self.client, self.prefix)

    def open(
        self,
        plan: Plan,
        out: str,
        chunks_done: Iterable[tuple[int, int]],
        last: int | None = None,
        counts: tuple[int, int, int] | None = None,
    ) -> int:
        """Make a run live (again) and return its new epoch; messages of older epochs are void.

        chunks_done: (chunk number, requests) of every chunk that storage says is complete; last:
        the round that it is in, whose end is that of the epoch; counts: requests, how many of them
        have an image, and how many a record without one, where not all of the rounds' rows are
        needed.
        """
        key = self._key(plan.run_id)
        done = dict(chunks_done)
        rounds = range(MAX_ROUNDS if last is None else last + 1)
        settled = plan.until(-1) + sum(done.values())
        requests, images, failed = counts or (plan.until(last), settled, 0)
        with self.client.pipeline() as pipe:
            # Not from 0: messages of before a wiped Redis must be void as well.
            pipe.hsetnx(key, "epoch", int(time.time()))
            pipe.hincrby(key, "epoch", 1)
            pipe.hset(
                key,
                mapping={
                    "out": out,
                    "models": orjson.dumps(_requests_by_model(plan)),
                    "seal": self.seal.sign(plan.run_id, out),
                    "state": "running",
                    "requests": requests,
                    "chunks": plan.chunks_of(rounds),
                    "done": images,
                    "failed": failed,
                    "chooses": int(plan.chooses),
                    "begun_at": time.time(),
                    "problem": "",
                    "team": plan.team,
                    "priority": plan.priority,
                    "guess": plan.seconds / max(1, plan.chunks),
                    "owed": 0,
                    "owing": 0,
                },
            )
            pipe.hdel(entering(self.prefix, plan.team), plan.run_id)  # it counts by itself now
            pipe.delete(f"{key}:chunks", f"{key}:busy", f"{key}:next")
            for number in done:
                pipe.setbit(f"{key}:chunks", number, 1)
            pipe.zadd(f"{self.prefix}runs", {plan.run_id: time.time()})
            touch(pipe, key)
            epoch = int(pipe.execute()[1])
        self._forget_gone()
        return epoch

    def _forget_gone(self) -> None:
        """Take the runs off the list whose state has expired, KEEP_SECONDS after their last change.

        Not by the time of their submission: a run may go on for months.
        """
        old = cast(
            "list[bytes]",
            self.client.zrangebyscore(f"{self.prefix}runs", 0, time.time() - KEEP_SECONDS),
        )
        with self.client.pipeline(transaction=False) as pipe:
            for run_id in old:
                pipe.exists(self._key(run_id.decode()))
            there = pipe.execute()
        if gone := [run_id for run_id, exists in zip(old, there, strict=True) if not exists]:
            self.client.zrem(f"{self.prefix}runs", *gone)

    def progress(self, run_id: str) -> Progress | None:
        """Where the run stands; None if Redis does not know it.

        Raises:
            FatalError: somebody else has written its output location.
        """
        with self.client.pipeline() as pipe:
            ask(pipe, self._key(run_id))
            return self._checked(run_id, pipe.execute())

    def newest(self, most: int = 100) -> list[Progress]:
        """Where the newest runs of this installation stand, in two round trips however many."""
        run_ids = self.listed(most)
        with self.client.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                ask(pipe, self._key(run_id))
            answers = pipe.execute()
        found = list[Progress]()
        for number, run_id in enumerate(run_ids):
            with suppress(FatalError):  # not of this installation
                answer = answers[number * ASKED : (number + 1) * ASKED]
                if progress := self._checked(run_id, answer):
                    found.append(progress)
        return found

    def _checked(self, run_id: str, answers: Sequence[Any]) -> Progress | None:
        """Raises: as progress."""
        if fields := answers[0]:
            self._check(run_id, *_texts(fields.get(b"out"), fields.get(b"seal")))
        return read(run_id, answers)

    def location(self, run_id: str, epoch: int) -> str | None:
        """The run's output URI if it is running in that epoch, else None: then do not start.

        Raises:
            FatalError: somebody else has written it.
        """
        found = self._running(run_id, epoch, "out", "seal")
        if found is None:
            return None
        out, signature = _texts(*found)
        self._check(run_id, out, signature)
        return out

    def _check(self, run_id: str, out: str, signature: str) -> None:
        if not self.seal.fits(signature, run_id, out):
            raise FatalError(
                f"the broker's record of run {run_id} was not written by this installation",
                "Give all producers and workers the same IMAGEMILL_BROKER_SECRET, then resume the "
                "run by its output location.",
            )

    def is_running(self, run_id: str, epoch: int) -> bool:
        """False as soon as the run is paused, cancelled, finished or started anew."""
        return self._running(run_id, epoch) is not None

    def _running(self, run_id: str, epoch: int, *fields: str) -> list[bytes | None] | None:
        """Fields of a run that is running in that epoch, else None."""
        found = self.client.hmget(self._key(run_id), "state", "epoch", *fields)
        state, now, *values = cast("list[bytes | None]", found)
        return values if state == b"running" and int(now or 0) == epoch else None

    def set_state(self, run_id: str, state: State) -> None:
        self._change(run_id, state)

    def set_priority(self, run_id: str, priority: Priority) -> None:
        """From the next turn on; chunks that are queued already stay where they are."""
        self.client.hset(self._key(run_id), "priority", priority)

    def pause(self, run_id: str, problem: str) -> None:
        """Pause a run until a person resumes it; `problem` says why and what to do."""
        self._change(run_id, "paused", problem)

    def _change(self, run_id: str, state: State, problem: str = "") -> None:
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.hset(key, mapping={"state": state, "problem": problem})
            touch(pipe, key)
            pipe.execute()

    def spend(self, run_id: str, model: str, effort: Effort) -> None:
        """Add what a chunk of a model has cost."""
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.hincrby(key, "device_chunks", 1)
            pipe.hincrbyfloat(key, "device_seconds", effort.seconds)
            pipe.hincrbyfloat(key, f"{COST}{model}", effort.seconds)
            pipe.hincrbyfloat(key, "device_span", effort.span)
            pipe.hincrby(key, "device_slots", effort.slots)
            pipe.hincrby(key, "device_images", effort.images)
            pipe.execute()

    def finish(self, run_id: str, done: int, failed: int, problem: str = "") -> None:
        """The dataset is written: set the final counts, of images, not of candidates for them, and
        what it lacks but images."""
        requests = done + failed
        self.client.hset(
            self._key(run_id),
            mapping={
                "state": "finished",
                "requests": requests,
                "done": done,
                "failed": failed,
                "problem": problem,
            },
        )

    def forget(self, run_id: str) -> None:
        """Keep nothing of a run, whose messages are void then."""
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.delete(*(f"{key}{name}" for name in (*KEPT, SUSPECTS)))
            pipe.zrem(f"{self.prefix}runs", run_id)
            pipe.execute()

    def listed(self, most: int = 100) -> list[str]:
        """Ids of the runs that Redis knows, newest first."""
        found = self.client.zrevrange(f"{self.prefix}runs", 0, most - 1)
        return [run_id.decode() for run_id in cast("list[bytes]", found)]

    def outstanding(self) -> tuple[Counter[str], Counter[str]]:
        """How many runs are in each state, and requests of running runs without a record, by model.

        Those of chunks under way count whole; of a run with several models each has its share of
        what is left. Two round trips, however many runs there are.
        """
        found = cast("list[bytes]", self.client.zrange(f"{self.prefix}runs", 0, -1))
        with self.client.pipeline(transaction=False) as pipe:
            for run_id in found:
                fields = ("state", "requests", "done", "failed", "models")
                pipe.hmget(self._key(run_id.decode("utf-8", "replace")), *fields)
            answers = pipe.execute(raise_on_error=False)
        states, left = Counter[str](), Counter[str]()
        for answer in answers:
            with suppress(ValueError, TypeError, AttributeError):  # gone, or not of our writing
                state, requests, done, failed, models = answer
                states[state.decode()] += 1
                pending = max(0, int(requests) - int(done) - int(failed))
                if state == b"running" and pending:
                    shares = {str(model): int(n) for model, n in orjson.loads(models).items()}
                    for model, share in shares.items():
                        left[model] += round(pending * share / max(1, sum(shares.values())))
        return states, left

    def live(self) -> list[tuple[str, int]]:
        """(run id, epoch) of every run that is to go on."""
        found = self.client.zrange(f"{self.prefix}runs", 0, -1)
        names = [run_id.decode() for run_id in cast("list[bytes]", found)]
        with self.client.pipeline(transaction=False) as pipe:
            for run_id in names:
                pipe.hmget(self._key(run_id), "state", "epoch")
            states = pipe.execute()
        return [
            (run_id, int(epoch))
            for run_id, (state, epoch) in zip(names, states, strict=True)
            if state == b"running"
        ]

    def _key(self, run_id: str) -> str:
        return run_key(self.prefix, run_id)


def _texts(*values: bytes | None) -> tuple[str, ...]:
    return tuple((value or b"").decode("utf-8", "replace") for value in values)


def _requests_by_model(plan: Plan) -> dict[str, int]:
    found = Counter[str]()
    for shard in plan.shards:
        for chunk in shard.chunks:
            found[chunk.model] += chunk.stop - chunk.start
    return dict(found)
