"""The facade's side of interactive calls: put one, wait for its answer, withdraw it."""

from __future__ import annotations

from dataclasses import dataclass

import redis.asyncio

from jobs.broker.dispatch import wake_message
from jobs.broker.queues import INTERACTIVE, queue_name
from jobs.broker.seals import Seal
from jobs.calls.call import Answer, Call, CallKeys, decode_answer, encode_call

# KEYS: the calls that wait for the model, those of the team, the call's body, the model's queue.
# ARGV: member, id, body, seconds to live, most for the model, most for the team, a wake message,
# how many of those may lie in the queue.
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
if redis.call('LLEN', KEYS[4]) < tonumber(ARGV[8]) then redis.call('LPUSH', KEYS[4], ARGV[7]) end
return {'', waiting}
"""

# KEYS: the model's queue. ARGV: a wake message, how many may lie there.
WAKE = """
if redis.call('LLEN', KEYS[1]) < tonumber(ARGV[2]) then redis.call('LPUSH', KEYS[1], ARGV[1]) end
"""


class QueueFull(Exception):
    """Too many calls wait: `scope` is "model" or "team", `ahead` counts those of the model."""

    def __init__(self, scope: str, ahead: int) -> None:
        super().__init__(f"too many calls of this {scope} are waiting")
        self.ahead = ahead


@dataclass(frozen=True, slots=True)
class CallLimits:
    """For how long a call may wait, and how many may at a time.

    wake_seconds: as long as a call waits, a worker is woken so often; wakes: that may lie in a
    model's queue, each of which has a worker serve until no call waits.
    """

    seconds: int
    model: int
    team: int
    wake_seconds: float = 2.0
    wakes: int = 16


class CallQueue:
    """The calls that wait. Raises redis.RedisError when Redis is away."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        prefix: str,
        limits: CallLimits,
        seal: Seal,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._keys = CallKeys(prefix)
        self._limits = limits
        self._seal = seal
        self._put = client.register_script(PUT)
        self._wake = client.register_script(WAKE)

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
                self._limits.model, self._limits.team, wake_message(model, self._seal),
                self._limits.wakes,
            ],
        )  # fmt: skip
        if full:
            raise QueueFull(full.decode(), ahead)

    async def wait(self, call: Call) -> Answer:
        """The answer to a call, however long it takes."""
        model = call.request.key.model
        while True:
            found = await self._client.blpop(
                [self._keys.answer(call.id)], timeout=self._limits.wake_seconds
            )
            if found:
                return decode_answer(found[1])
            await self.wake(model)

    async def wake(self, model: str) -> None:
        """Have one more worker look for calls of a model, unless enough are to do so."""
        message = wake_message(model, self._seal)
        await self._wake([self._queue(model)], [message, self._limits.wakes])

    async def withdraw(self, call: Call) -> None:
        """Remove a call that waits. One that is being rendered ends unheard."""
        async with self._client.pipeline() as pipe:
            pipe.zrem(self._keys.waiting(call.request.key.model), call.member)
            pipe.zrem(self._keys.team(call.team), call.id)
            pipe.delete(self._keys.call(call.id))
            await pipe.execute()

    def _queue(self, model: str) -> str:
        return self._prefix + queue_name(INTERACTIVE, model)
