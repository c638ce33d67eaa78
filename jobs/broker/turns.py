"""Whose turn it is: of the runs that wait, the one that has had the least device time.

A run that has chunks to give out stands in a set for each model. Whoever takes a feed message gives
a turn, some chunks, to the run whose turn it is, whichever run the message is of. A turn is charged
at once, as what the run's chunks took so far, and set right when they are measured.

    <prefix>waiting.<model>        set: ids of the runs that have chunks of the model to give out
    <prefix>run:<id>:next          hash: queue of a model → "<shard> <chunk>" to be given out next
    <prefix>run:<id>               used: as below; owed, owing: seconds that its unmeasured chunks
                                   were charged, and how many these are
    <prefix>usage                  hash: team → "<device seconds> <when>", halved every hour since
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import redis

from jobs.broker.keys import run_key
from jobs.broker.messages import RENDER, Message, make
from jobs.broker.queues import BULK, WAITING, queue_name
from jobs.broker.seals import Seal
from jobs.output.plan import Place
from jobs.teams import PRIORITIES, Priority

HALF_LIFE = 3600.0  # seconds in which half of what was used is forgotten
HEAD_START = 300.0  # device seconds that who used less may be ahead with, so that nobody starves
WARM_SECONDS = 60.0  # device seconds that a run may get too early because its model is loaded
TURN_SECONDS = 5.0  # a turn has several chunks if they are shorter
MOST_CHUNKS = 200  # of a turn
GUESS_SECONDS = 30.0  # what a chunk is charged if nothing is known of its run
LOOKED_AT = 1000  # waiting runs of a model, drawn at random if there are more


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that has chunks of a model to give out, from `place` on.

    team_used, used: device seconds of its team and of itself lately; seconds: what its measured
    chunks took in the mean, 0 if there is none; guess: what its plan says instead, 0 if nothing.
    """

    run_id: str
    epoch: int
    model: str
    place: Place
    team: str
    priority: Priority
    team_used: float = 0.0
    used: float = 0.0
    seconds: float = 0.0
    guess: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a run. team_lift, lift: device seconds that its team and it are charged beside, so
    that neither is further behind than HEAD_START."""

    run: Waiting
    team_lift: float = 0.0
    lift: float = 0.0

    @property
    def chunks(self) -> int:
        """How many chunks it is at most. Of a run that was never measured only one."""
        if not self.run.seconds:
            return 1
        return min(MOST_CHUNKS, max(1, int(TURN_SECONDS / self.run.seconds)))


def whose_turn(
    waiting: Sequence[Waiting], weights: Mapping[str, float], loaded: Collection[str] = ()
) -> Turn:
    """The turn that comes next; there must be a run that waits.

    The highest priority; of it the team with the least device seconds for its weight (1 if it has
    none); of the team the run with the least. A run whose model is `loaded` comes before it, if it
    is no more than WARM_SECONDS ahead.
    """

    def shared(one: Waiting) -> float:
        return one.team_used / weights.get(one.team, 1.0)

    def order(one: Waiting) -> tuple[float, str, float, int, str]:
        return shared(one), one.team, one.used, one.epoch, one.run_id

    highest = max(PRIORITIES.index(one.priority) for one in waiting)
    rivals = [one for one in waiting if PRIORITIES.index(one.priority) == highest]
    first = min(rivals, key=order)
    if first.model not in loaded and (warm := [one for one in rivals if one.model in loaded]):
        other = min(warm, key=order)
        same = other.team == first.team
        ahead = other.used - first.used if same else shared(other) - shared(first)
        first = other if ahead <= WARM_SECONDS else first
    teams = [shared(one) for one in rivals if one.team != first.team]
    runs = [one.used for one in rivals if one.team == first.team and one.run_id != first.run_id]
    return Turn(
        first,
        _lift(shared(first), teams) * weights.get(first.team, 1.0),
        _lift(first.used, runs),
    )


def _lift(used: float, others: Iterable[float]) -> float:
    return max(0.0, min(others, default=used) - HEAD_START - used)


# What team or run used: adds to "<seconds> <when>". And the time: what is given, or Redis's own.
CHARGE = """
local function moment(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
local function charge(key, field, seconds, now, half_life)
  local used, at = string.match(redis.call('HGET', key, field) or '0 0', '^(%S+) (%S+)$')
  local age = math.max(0, now - (tonumber(at) or 0))
  used = math.max(0, (tonumber(used) or 0) * 2 ^ (-age / half_life) + seconds)
  redis.call('HSET', key, field, string.format('%.6f %.6f', used, now))
end
"""

# KEYS: run, its next, waiting, bulk queue, usage. ARGV: run id, epoch, queue of the model, place,
# the one after it or '', now, half-life, charged for each chunk, and beside to the team and to the
# run, messages. Gives out chunks, unless the run is at another place by now.
TAKE = (
    CHARGE
    + """
local state = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'team')
if state[1] ~= 'running' or state[2] ~= ARGV[2] then return 0 end
if redis.call('HGET', KEYS[2], ARGV[3]) ~= ARGV[4] then return 0 end
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[2], ARGV[3])
  redis.call('SREM', KEYS[3], ARGV[1])
else
  redis.call('HSET', KEYS[2], ARGV[3], ARGV[5])
end
local now, half_life, chunks = moment(ARGV[6]), tonumber(ARGV[7]), #ARGV - 10
local seconds = chunks * ARGV[8]
charge(KEYS[5], state[3] or '', seconds + ARGV[9], now, half_life)
charge(KEYS[1], 'used', seconds + ARGV[10], now, half_life)
redis.call('HINCRBYFLOAT', KEYS[1], 'owed', seconds)
redis.call('HINCRBY', KEYS[1], 'owing', chunks)
for i = 11, #ARGV do redis.call('LPUSH', KEYS[4], ARGV[i]) end
return 1
"""
)

# KEYS: run, usage. ARGV: measured seconds of a chunk, now, half-life. Takes the place of a guess.
SETTLE = (
    CHARGE
    + """
local state = redis.call('HMGET', KEYS[1], 'team', 'owed', 'owing')
if not state[1] then return end
local owing, seconds = tonumber(state[3] or 0), tonumber(ARGV[1])
if owing > 0 then
  local guess = tonumber(state[2] or 0) / owing
  redis.call('HINCRBYFLOAT', KEYS[1], 'owed', -guess)
  redis.call('HINCRBY', KEYS[1], 'owing', -1)
  seconds = seconds - guess
end
local now = moment(ARGV[2])
charge(KEYS[2], state[1], seconds, now, tonumber(ARGV[3]))
charge(KEYS[1], 'used', seconds, now, tonumber(ARGV[3]))
"""
)

# KEYS: run, waiting. ARGV: run id. Forgets a run that does not go on.
LEAVE = """
if redis.call('HGET', KEYS[1], 'state') ~= 'running' then redis.call('SREM', KEYS[2], ARGV[1]) end
"""


@dataclass(frozen=True)
class Turns:
    """The turns of one installation. Raises redis.RedisError when Redis is away.

    now: Unix seconds; Redis's own if None, so that hosts need not agree on theirs.
    """

    client: redis.Redis
    prefix: str
    seal: Seal
    now: Callable[[], float] | None = None

    def waiting(self, models: Sequence[str]) -> list[Waiting]:
        """The runs that have chunks of these models to give out. Three round trips."""
        with self.client.pipeline(transaction=False) as pipe:
            for model in models:
                command: Any = pipe.srandmember
                command(self._waiting(model), LOOKED_AT)
            drawn = cast("list[list[bytes]]", pipe.execute())
        members = [
            (model, run_id.decode("utf-8", "replace"))
            for model, found in zip(models, drawn, strict=True)
            for run_id in found
        ]
        with self.client.pipeline(transaction=False) as pipe:
            for model, run_id in members:
                fields = ("state", "epoch", "team", "priority", "used", "device_seconds")
                pipe.hmget(self._run(run_id), *fields, "device_chunks", "guess")
                pipe.hget(f"{self._run(run_id)}:next", queue_name(BULK, model))
            pipe.hgetall(f"{self.prefix}usage")
            pipe.time()
            *answers, teams, (seconds, micros) = pipe.execute()
        now = self.now() if self.now else seconds + micros / 1e6
        used = {team.decode("utf-8", "replace"): _decayed(raw, now) for team, raw in teams.items()}
        runs = list[Waiting]()
        for (model, run_id), state, place in zip(members, answers[::2], answers[1::2], strict=True):
            if state[0] != b"running":
                keys = (self._run(run_id), self._waiting(model))
                self.client.eval(LEAVE, len(keys), *keys, run_id)
            elif place is not None:
                with suppress(ValueError, TypeError, AttributeError):  # not of our writing
                    runs.append(_read(run_id, model, state, place, used, now))
        return runs

    def take(self, turn: Turn, chunks: Sequence[Place], following: Place | None) -> bool:
        """Queue a turn's chunks, so that `following` is next, or nothing.

        False if the run is elsewhere by now: somebody else gave it a turn, or it does not go on.
        """
        run = turn.run
        bulk = queue_name(BULK, run.model)
        own = self._run(run.run_id)
        keys = (
            own, f"{own}:next", self._waiting(run.model), f"{self.prefix}{bulk}",
            f"{self.prefix}usage",
        )  # fmt: skip
        messages = [
            make(Message(RENDER, (run.run_id, run.epoch, *place), bulk), self.seal)
            for place in chunks
        ]
        arguments: list[Any] = [
            run.run_id, run.epoch, bulk, _text(run.place), _text(following) if following else "",
            self._now(), HALF_LIFE, run.seconds or run.guess or GUESS_SECONDS,
            turn.team_lift, turn.lift,
        ]  # fmt: skip
        return bool(self.client.eval(TAKE, len(keys), *keys, *arguments, *messages))

    def settle(self, run_id: str, seconds: float) -> None:
        """A chunk took so many device seconds."""
        keys = (self._run(run_id), f"{self.prefix}usage")
        self.client.eval(SETTLE, len(keys), *keys, seconds, self._now(), HALF_LIFE)

    def _now(self) -> float | str:
        """As scripts take it."""
        return self.now() if self.now else ""

    def _waiting(self, model: str) -> str:
        return f"{self.prefix}{queue_name(WAITING, model)}"

    def _run(self, run_id: str) -> str:
        return run_key(self.prefix, run_id)


def _read(
    run_id: str,
    model: str,
    state: Sequence[bytes | None],
    place: bytes,
    used: Mapping[str, float],
    now: float,
) -> Waiting:
    """Raises ValueError, TypeError or AttributeError for what nobody of ours wrote."""
    _, epoch, team, priority, own, seconds, chunks, guess = state
    shard, chunk = map(int, place.split())
    if min(shard, chunk) < 0:
        raise ValueError(place)
    name, rank = (cast("bytes", raw).decode() for raw in (team, priority))
    measured, guessed = float(seconds or 0) / max(1, int(chunks or 0)), float(guess or 0)
    return Waiting(
        run_id,
        int(epoch or 0),
        model,
        (shard, chunk),
        name,
        PRIORITIES[PRIORITIES.index(cast("Priority", rank))],  # or a ValueError
        used.get(name, 0.0),
        _decayed(own, now),
        measured if isfinite(measured) else 0.0,
        guessed if isfinite(guessed) else 0.0,
    )


def _decayed(raw: bytes | None, now: float) -> float:
    with suppress(ValueError):
        used, at = map(float, (raw or b"0 0").split())
        value = used * 2.0 ** (-max(0.0, now - at) / HALF_LIFE)
        return value if isfinite(value) and value > 0 else 0.0
    return 0.0


def _text(place: Place) -> str:
    return f"{place[0]} {place[1]}"
