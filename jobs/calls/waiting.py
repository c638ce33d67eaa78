"""The facade's side of interactive calls: put one, wait for its answer, withdraw it."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import redis.asyncio

from jobs.broker.app import INTERACTIVE, queue_name
from jobs.broker.dispatch import Dispatcher
from jobs.broker.seals import Seal
from jobs.calls.call import Answer, Call, CallKeys, decode_answer, encode_call

WAKE_SECONDS = 2.0  # as long as a call waits, a worker is woken so often

_MESSAGE_ID = "$id"  # in the wake message that others are made from; no model's queue has a "$"

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
    """The calls that wait. Raises redis.RedisError when Redis is away."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        prefix: str,
        limits: CallLimits,
        seal: Seal,
        dispatcher: Dispatcher,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._keys = CallKeys(prefix)
        self._limits = limits
        self._seal = seal
        self._dispatcher = dispatcher
        self._put = client.register_script(PUT)
        self._wake_messages: dict[str, bytes] = {}

    async def ping(self) -> None:
        """Nothing, if Redis answers."""
        await self._client.ping()

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
            found = await self._client.blpop([self._keys.answer(call.id)], timeout=WAKE_SECONDS)
            if found:
                return decode_answer(found[1])
            await self._client.lpush(self._queue(model), self._wake_message(model))

    async def withdraw(self, call: Call) -> None:
        """Remove a call that waits. One that is being rendered ends unheard."""
        async with self._client.pipeline() as pipe:
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
