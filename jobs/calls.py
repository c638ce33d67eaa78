"""Interactive calls: requests whose callers wait. Live state in Redis alone, none of it lasting.

A facade puts a call here and waits for its answer. While it waits it wakes workers again, every
few seconds, so nothing else must remember a call: whatever dies or is lost, the next wake finds it.

    <prefix>calls:<model>      sorted set: "<group>:<call id>" → when it may be taken
    <prefix>call:<id>          "<seal> <JSON of the call>"; gone once it is answered, withdrawn or
                               too late
    <prefix>call-takes:<id>    how often a worker has taken it
    <prefix>calls-of:<team>    sorted set: call id → its deadline
    <prefix>answer:<id>        list of one answer, the record's row; expires soon

Times are Redis's own, in Unix seconds, so that hosts need not agree on theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from threading import Event, Thread
from typing import Any, cast
from uuid import uuid4

import orjson
import redis
import redis.asyncio
from pydantic import TypeAdapter

from jobs.app import INTERACTIVE, queue_name
from jobs.dispatch import Dispatcher
from jobs.requests import Request
from jobs.seals import Seal

WAKE_SECONDS = 2.0  # as long as a call waits, a worker is woken so often
CLAIM_SECONDS = 3.0  # a dead worker's calls may be taken again after that
RENEW_SECONDS = 0.5
TAKES = 3  # a call that was taken so often without an answer is given up
ANSWER_SECONDS = 60  # how long an answer waits for whoever asked

_MESSAGE_ID = "$id"  # in the wake message that others are made from; no model's queue has a "$"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and where its image goes: `path` below the location `out`."""

    id: str
    team: str
    request: Request
    out: str
    path: str

    @property
    def member(self) -> str:
        """Its name among those that wait: calls of one group can share a batch."""
        group = blake2b(orjson.dumps(self.request.key), digest_size=8).hexdigest()
        return f"{group}:{self.id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller needs of a record's row. `status` and `code` are the record's."""

    status: str
    code: str = ""
    message: str = ""
    seconds_render: float = 0.0


_Taken = tuple[bytes, bytes, int, bytes]  # its set, its member, how often taken before, its body
_CALL = TypeAdapter(Call)
_ANSWER = TypeAdapter(Answer)


def encode_call(call: Call, seal: Seal) -> bytes:
    body = _CALL.dump_json(call)
    return f"{seal.sign(body.decode())} ".encode() + body


def decode_call(raw: bytes, seal: Seal) -> Call:
    """Raises ValueError if it is no call, or not of this installation."""
    signature, _, body = raw.decode().partition(" ")
    if not seal.fits(signature, body):
        raise ValueError("its seal is wrong")
    return _CALL.validate_json(body)


def decode_answer(row: bytes | str) -> Answer:
    return _ANSWER.validate_json(row)


@dataclass(frozen=True, slots=True)
class CallKeys:
    """Names in Redis."""

    prefix: str

    def waiting(self, model: str) -> str:
        return f"{self.prefix}calls:{model}"

    def call(self, call_id: str) -> str:
        return f"{self.prefix}call:{call_id}"

    def takes(self, call_id: str) -> str:
        return f"{self.prefix}call-takes:{call_id}"

    def team(self, team: str) -> str:
        return f"{self.prefix}calls-of:{team}"

    def answer(self, call_id: str) -> str:
        return f"{self.prefix}answer:{call_id}"


# KEYS: the calls that wait for the model, those of the team, the call's body, the model's queue.
# ARGV: member, id, body, seconds to live, most for the model, most for the team, a wake message.
# Returns what is full: "" (the call was put there), "model" or "team", and how many are before it.
PUT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local waiting = redis.call('ZCARD', KEYS[1])
if waiting >= tonumber(ARGV[5]) then return {'model', waiting} end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[6]) then return {'team', waiting} end
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4] * 2)
redis.call('EXPIRE', KEYS[2], ARGV[4])
redis.call('LPUSH', KEYS[4], ARGV[7])
return {'', waiting}
"""


class QueueFull(Exception):
    """Too many calls wait: `scope` is "model" or "team", `ahead` counts those of the model."""

    def __init__(self, scope: str, ahead: int) -> None:
        super().__init__(f"too many calls of this {scope} are waiting")
        self.ahead = ahead


@dataclass(frozen=True, slots=True)
class CallLimits:
    """For how long a call may wait, and how many may at a time."""

    seconds: int
    model: int
    team: int


class CallQueue:
    """A facade's side of the calls. Raises redis.RedisError when Redis is away."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        prefix: str,
        limits: CallLimits,
        seal: Seal,
        dispatcher: Dispatcher,
    ) -> None:
        self.client = client
        self._prefix = prefix
        self._keys = CallKeys(prefix)
        self._limits = limits
        self._seal = seal
        self._dispatcher = dispatcher
        self._put = client.register_script(PUT)
        self._wake_messages: dict[str, bytes] = {}

    async def put(self, call: Call) -> None:
        """Queue a call, and wake a worker.

        Raises:
            QueueFull: the call was not queued.
        """
        model = call.request.key.model
        full, ahead = await self._put(
            [
                self._keys.waiting(model), self._keys.team(call.team), self._keys.call(call.id),
                self._queue(model),
            ],
            [
                call.member, call.id, encode_call(call, self._seal), self._limits.seconds,
                self._limits.model, self._limits.team, self._wake_message(model),
            ],
        )  # fmt: skip
        if full:
            raise QueueFull(full.decode(), ahead)

    async def wait(self, call: Call) -> Answer:
        """The answer to a call, however long it takes."""
        model = call.request.key.model
        while True:
            found = await self.client.blpop([self._keys.answer(call.id)], timeout=WAKE_SECONDS)
            if found:
                return decode_answer(found[1])
            await self.client.lpush(self._queue(model), self._wake_message(model))

    async def withdraw(self, call: Call) -> None:
        """Remove a call that waits. One that is being rendered ends unheard."""
        async with self.client.pipeline() as pipe:
            pipe.zrem(self._keys.waiting(call.request.key.model), call.member)
            pipe.zrem(self._keys.team(call.team), call.id)
            pipe.delete(self._keys.call(call.id))
            await pipe.execute()

    def _queue(self, model: str) -> str:
        return self._prefix + queue_name(INTERACTIVE, model)

    def _wake_message(self, model: str) -> bytes:
        """One of its own each time, from one that was made once: that takes a millisecond."""
        if model not in self._wake_messages:
            self._wake_messages[model] = self._dispatcher.wake_message(model, _MESSAGE_ID)
        return self._wake_messages[model].replace(_MESSAGE_ID.encode(), uuid4().hex.encode())


# KEYS: the waiting sets of some models. ARGV: seconds of the claim, what the key of a call begins
# with, what that of its takes begins with, then the width of each model.
# Takes the oldest call that may be taken, and those of its group that fit beside it; one that was
# taken before goes alone, as it may have killed its worker. Calls whose caller has gone or whose
# deadline has passed are dropped.
TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local oldest, chosen
for i, key in ipairs(KEYS) do
  local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if head[2] and tonumber(head[2]) <= now and (not oldest or tonumber(head[2]) < oldest) then
    oldest, chosen = tonumber(head[2]), i
  end
end
if not chosen then return false end
local taken = {}
local key, width, group = KEYS[chosen], tonumber(ARGV[3 + chosen]), nil
for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now)) do
  local its_group, id = string.sub(member, 1, 16), string.sub(member, 18)
  local before = tonumber(redis.call('GET', ARGV[3] .. id) or 0)
  if #taken < width and (not group or (its_group == group and before == 0)) then
    local body = redis.call('GET', ARGV[2] .. id)
    if body then
      redis.call('ZADD', key, now + ARGV[1], member)
      redis.call('SET', ARGV[3] .. id, before + 1, 'EX', 3600)
      taken[#taken + 1] = {key, member, before, body}
      group = its_group
      if before > 0 then break end
    else
      redis.call('ZREM', key, member)
    end
  end
end
return taken
"""


class Calls:
    """A worker's side of the calls. Raises redis.RedisError when Redis is away."""

    def __init__(self, client: redis.Redis, prefix: str, seal: Seal) -> None:
        self._client = client
        self._keys = CallKeys(prefix)
        self._seal = seal
        self._take = client.register_script(TAKE)

    def take(self, widths: Mapping[str, int]) -> list[Call]:
        """Claim calls that can share a batch; empty if none waits.

        widths: the models to look for, and how many requests a batch of each may have.
        """
        sets = [self._keys.waiting(model) for model in widths]
        beginnings = [self._keys.call(""), self._keys.takes("")]
        while True:
            found = self._take(sets, [CLAIM_SECONDS, *beginnings, *widths.values()])
            if found is None:
                return []
            if calls := list(self._wanted(cast("list[_Taken]", found))):
                return calls

    def _wanted(self, taken: list[_Taken]) -> Iterator[Call]:
        for waiting, member, before, body in taken:
            try:
                call = decode_call(body, self._seal)
            except ValueError as error:
                log.error("A call was dropped: %s", error)
                self._client.zrem(waiting, member)
                continue
            if before < TAKES:
                yield call
            else:
                message = f"the worker died {before} times while it was rendered"
                self.answer(call, asdict(Answer("failed", "worker_died", message)))

    @contextmanager
    def keep(self, calls: Sequence[Call]) -> Iterator[None]:
        """Hold the claim on calls that are being rendered, however long that takes."""
        waiting = self._keys.waiting(calls[0].request.key.model)
        done = Event()

        def renew() -> None:
            while not done.wait(RENEW_SECONDS):
                try:
                    seconds, micros = self._client.time()
                    until = seconds + micros / 1e6 + CLAIM_SECONDS
                    # XX: never bring back a call that was answered or withdrawn meanwhile.
                    self._client.zadd(waiting, {call.member: until for call in calls}, xx=True)
                except redis.RedisError as error:
                    log.warning("Claims on calls were not renewed: %s", error)

        thread = Thread(target=renew, name="claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def answer(self, call: Call, row: Mapping[str, Any]) -> None:
        """Hand the record's row to whoever waits; a second answer changes nothing."""
        answer = self._keys.answer(call.id)
        with self._client.pipeline() as pipe:
            pipe.zrem(self._keys.waiting(call.request.key.model), call.member)
            pipe.zrem(self._keys.team(call.team), call.id)
            pipe.delete(self._keys.call(call.id), self._keys.takes(call.id))
            pipe.rpush(answer, orjson.dumps(row))
            pipe.ltrim(answer, 0, 0)
            pipe.expire(answer, ANSWER_SECONDS)
            pipe.execute()
