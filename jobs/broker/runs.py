"""The live state of runs, in Redis: a flag that cancels, an epoch, counters. Never the truth.

Everything here can be rebuilt from a run's storage; that is what `imagemill resume` does.

    <prefix>runs                   sorted set: run id → time of submission
    <prefix>run:<id>               hash: out, state, epoch, requests, chunks, done, failed, team, …;
                                   models: JSON, of each how many requests the chunks have;
                                   device_seconds:<model>: of these
    <prefix>run:<id>:chunks        bitmap: chunk number → complete
    <prefix>run:<id>:busy          hash: chunk number → "<done> <failed> <attempt>" while it renders
    <prefix>run:<id>:attempts      hash: chunk number → how often a worker began it
    <prefix>run:<id>:deaths        hash: chunk number → how many attempts never ended
    <prefix>run:<id>:suspects      hash: job id → deaths of workers that it was watched in
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson
import redis

from jobs.broker.counters import count
from jobs.broker.seals import Seal
from jobs.errors import FatalError
from jobs.output.plan import Plan
from jobs.teams import OPEN_TEAM, Priority

State = Literal["running", "paused", "cancelled", "finished"]

KEEP_SECONDS = 30 * 24 * 3600  # how long a run stays listed after its last change
_COST = "device_seconds:"
_KEYS = ("", ":chunks", ":busy", ":next", ":attempts", ":deaths")  # of a run, after its own
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

    problem: why the run is paused, and what to do; empty if it was not. retries: attempts at
    chunks beyond the first; deaths: those among the attempts that no worker has ended; suspects:
    requests that may have killed a worker; models: what the run needs workers for; effort: of the
    chunks that are complete; costs: of these the device seconds by model.
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

    @property
    def settled(self) -> int:
        return self.done + self.failed

    @property
    def pending(self) -> int:
        return max(0, self.requests - self.settled)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a chunk. `number` counts from 1; `deaths`: how many earlier ones never ended."""

    number: int
    deaths: int


# KEYS: busy, deaths, the run. ARGV: a chunk, an attempt. Ends the attempt. If another one has begun
# since, it took this one for dead: it was not, Redis was away.
RELEASE = """
local busy = redis.call('HGET', KEYS[1], ARGV[1])
if busy and string.match(busy, '%S+$') == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
elseif busy and tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0) > 0 then
  redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
  redis.call('HINCRBY', KEYS[3], 'deaths', -1)
end
"""


@dataclass(frozen=True)
class Runs:
    """Access to the live state of all runs. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str
    seal: Seal

    def open(self, plan: Plan, out: str, chunks_done: Iterable[tuple[int, int]]) -> int:
        """Make a run live (again) and return its new epoch; messages of older epochs are void.

        chunks_done: (chunk number, requests) of every chunk that storage says is complete.
        """
        key = self._key(plan.run_id)
        done = dict(chunks_done)
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
                    "requests": plan.requests,
                    "chunks": plan.chunks,
                    "done": plan.requests - plan.left + sum(done.values()),
                    "failed": 0,
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
            self._touch(pipe, key)
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
            self._ask(pipe, run_id)
            return self._progress(run_id, pipe.execute())

    def newest(self, most: int = 100) -> list[Progress]:
        """Where the newest runs of this installation stand, in two round trips however many."""
        run_ids = self.listed(most)
        with self.client.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                self._ask(pipe, run_id)
            answers = pipe.execute()
        found = list[Progress]()
        for number, run_id in enumerate(run_ids):
            with suppress(FatalError):  # not of this installation
                answer = answers[number * ASKED : (number + 1) * ASKED]
                if progress := self._progress(run_id, answer):
                    found.append(progress)
        return found

    def _ask(self, pipe: redis.client.Pipeline, run_id: str) -> None:
        """Have a pipeline ask ASKED things, whose answers `_progress` reads."""
        key = self._key(run_id)
        pipe.hgetall(key)
        pipe.bitcount(f"{key}:chunks")
        pipe.hvals(f"{key}:busy")
        pipe.hlen(f"{key}:suspects")

    def _progress(self, run_id: str, answers: Sequence[Any]) -> Progress | None:
        """Raises: as progress."""
        fields, chunks_done, busy, suspects = answers
        if not fields:
            return None
        text = {name.decode(): value.decode() for name, value in fields.items()}
        self._check(run_id, text["out"], text.get("seal", ""))
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
                name.removeprefix(_COST): float(value)
                for name, value in text.items()
                if name.startswith(_COST)
            },
        )

    def location(self, run_id: str, epoch: int) -> str | None:
        """The run's output URI if it is running in that epoch, else None: then do not start.

        Raises:
            FatalError: somebody else has written it.
        """
        found = self._running(run_id, epoch, "out", "seal")
        if found is None:
            return None
        out, signature = ((value or b"").decode("utf-8", "replace") for value in found)
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
            self._touch(pipe, key)
            pipe.execute()

    def begin(self, run_id: str, chunk: int) -> Attempt:
        """Count that a worker begins a chunk; `release` or `complete` must follow while it lives.

        An attempt that neither followed has died with its worker.
        """
        key = self._key(run_id)
        number = int(self.client.hincrby(f"{key}:attempts", str(chunk), 1))
        with self.client.pipeline() as pipe:
            pipe.hset(f"{key}:busy", str(chunk), f"0 0 {number}")
            pipe.hget(f"{key}:deaths", str(chunk))
            ended, deaths = pipe.execute()
            if number > 1:
                pipe.hincrby(key, "retries", 1)
                count(pipe, self.prefix, ("chunk_retries",))
            if not ended:  # its entry was still there
                pipe.hincrby(key, "deaths", 1)
                count(pipe, self.prefix, ("chunk_deaths",))
                pipe.hincrby(f"{key}:deaths", str(chunk), 1)
            self._touch(pipe, key)
            pipe.execute()
        return Attempt(number, int(deaths or 0) + (not ended))

    def suspects(self, run_id: str, job_ids: Sequence[str]) -> list[int]:
        """For each request, in how many deaths of a worker it was being watched."""
        found = self.client.hmget(f"{self._key(run_id)}:suspects", job_ids)
        return [int(deaths or 0) for deaths in cast("list[bytes | None]", found)]

    def watch(self, run_id: str, job_ids: Iterable[str]) -> None:
        """Suspect requests from now on, until `trust`: if the worker dies, it counts for them."""
        key = f"{self._key(run_id)}:suspects"
        with self.client.pipeline() as pipe:
            for job_id in job_ids:
                pipe.hincrby(key, job_id, 1)
            pipe.expire(key, KEEP_SECONDS)
            pipe.execute()

    def trust(self, run_id: str, job_ids: Iterable[str]) -> None:
        """Requests that were watched have a record now."""
        self.client.hdel(f"{self._key(run_id)}:suspects", *job_ids)

    def report(self, run_id: str, chunk: int, attempt: Attempt, done: int, failed: int) -> None:
        """Say how far an attempt at a chunk is that is still rendering."""
        progress = f"{done} {failed} {attempt.number}"
        self.client.hset(f"{self._key(run_id)}:busy", str(chunk), progress)

    def is_busy(self, run_id: str) -> bool:
        """Whether a chunk has been rendering lately and has not been stored."""
        return bool(self.client.hlen(f"{self._key(run_id)}:busy"))

    def release(self, run_id: str, chunk: int, attempt: Attempt) -> None:
        """An attempt at a chunk stopped before its end, perhaps a while ago: it was no death."""
        key = self._key(run_id)
        keys = [f"{key}:busy", f"{key}:deaths", key]
        self.client.eval(RELEASE, len(keys), *keys, chunk, attempt.number)

    def complete(self, run_id: str, chunk: int, done: int, failed: int) -> bool:
        """Count a complete chunk, once however often it is said. True if it was the last one."""
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.setbit(f"{key}:chunks", chunk, 1)
            pipe.bitcount(f"{key}:chunks")
            pipe.hget(key, "chunks")
            pipe.hdel(f"{key}:busy", str(chunk))
            was_complete, chunks_done, chunks, _ = pipe.execute()
            if not was_complete:
                pipe.hincrby(key, "done", done)
                pipe.hincrby(key, "failed", failed)
                self._touch(pipe, key)
                pipe.execute()
        return chunks is not None and int(chunks_done) >= int(chunks)

    def spend(self, run_id: str, model: str, effort: Effort) -> None:
        """Add what a chunk of a model has cost."""
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.hincrby(key, "device_chunks", 1)
            pipe.hincrbyfloat(key, "device_seconds", effort.seconds)
            pipe.hincrbyfloat(key, f"{_COST}{model}", effort.seconds)
            pipe.hincrbyfloat(key, "device_span", effort.span)
            pipe.hincrby(key, "device_slots", effort.slots)
            pipe.hincrby(key, "device_images", effort.images)
            pipe.execute()

    def finish(self, run_id: str, done: int, failed: int) -> None:
        """The dataset is written: set the final counts."""
        self.client.hset(
            self._key(run_id), mapping={"state": "finished", "done": done, "failed": failed}
        )

    def forget(self, run_id: str) -> None:
        """Keep nothing of a run, whose messages are void then."""
        key = self._key(run_id)
        with self.client.pipeline() as pipe:
            pipe.delete(*(f"{key}{name}" for name in (*_KEYS, ":suspects")))
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
        return f"{self.prefix}run:{run_id}"

    @staticmethod
    def _touch(pipe: redis.client.Pipeline, key: str) -> None:
        for name in _KEYS:
            pipe.expire(f"{key}{name}", KEEP_SECONDS)


def entering(prefix: str, team: str) -> str:
    """Key of a team's runs that were let in (jobs.broker.quotas) and are not open yet."""
    return f"{prefix}entering:{team}"


def _requests_by_model(plan: Plan) -> dict[str, int]:
    found = Counter[str]()
    for shard in plan.shards:
        for chunk in shard.chunks:
            found[chunk.model] += chunk.stop - chunk.start
    return dict(found)
