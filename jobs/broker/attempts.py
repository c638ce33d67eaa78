"""Workers' attempts at chunks: which go on, which ended, what requests may have killed one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import redis

from jobs.broker.counters import count
from jobs.broker.keys import KEEP_SECONDS, SUSPECTS, run_key, touch

# KEYS: attempts, busy, deaths, the run. ARGV: a chunk. Begins an attempt; returns its number, how
# many earlier ones never ended, and whether the last one was one of them.
BEGIN = """
local number = redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
local died = 1 - redis.call('HSET', KEYS[2], ARGV[1], '0 0 ' .. number)
if number > 1 then redis.call('HINCRBY', KEYS[4], 'retries', 1) end
if died > 0 then
  redis.call('HINCRBY', KEYS[4], 'deaths', 1)
  redis.call('HINCRBY', KEYS[3], ARGV[1], 1)
end
return {number, tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or 0), died}
"""

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a chunk. `number` counts from 1; `deaths`: how many earlier ones never ended."""

    number: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Attempts:
    """Those of all runs. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str

    def begin(self, run_id: str, chunk: int) -> Attempt:
        """Count that a worker begins a chunk; `release` or `complete` must follow while it lives.

        An attempt that neither followed has died with its worker.
        """
        key = run_key(self.prefix, run_id)
        keys = [f"{key}:attempts", f"{key}:busy", f"{key}:deaths", key]
        with self.client.pipeline() as pipe:
            pipe.eval(BEGIN, len(keys), *keys, chunk)
            touch(pipe, key)
            (number, deaths, died), *_ = pipe.execute()
            if number > 1:
                count(pipe, self.prefix, ("chunk_retries",))
            if died:
                count(pipe, self.prefix, ("chunk_deaths",))
            pipe.execute()  # asks nothing where there is nothing to count
        return Attempt(number, deaths)

    def suspects(self, run_id: str, job_ids: Sequence[str]) -> list[int]:
        """For each request, in how many deaths of a worker it was being watched."""
        found = self.client.hmget(f"{run_key(self.prefix, run_id)}{SUSPECTS}", job_ids)
        return [int(deaths or 0) for deaths in cast("list[bytes | None]", found)]

    def watch(self, run_id: str, job_ids: Iterable[str]) -> None:
        """Suspect requests from now on, until `trust`: if the worker dies, it counts for them."""
        key = f"{run_key(self.prefix, run_id)}{SUSPECTS}"
        with self.client.pipeline() as pipe:
            for job_id in job_ids:
                pipe.hincrby(key, job_id, 1)
            pipe.expire(key, KEEP_SECONDS)
            pipe.execute()

    def trust(self, run_id: str, job_ids: Iterable[str]) -> None:
        """Requests that were watched have a record now."""
        self.client.hdel(f"{run_key(self.prefix, run_id)}{SUSPECTS}", *job_ids)

    def report(self, run_id: str, chunk: int, attempt: Attempt, done: int, failed: int) -> None:
        """Say how far an attempt at a chunk is that is still rendering."""
        progress = f"{done} {failed} {attempt.number}"
        self.client.hset(f"{run_key(self.prefix, run_id)}:busy", str(chunk), progress)

    def is_busy(self, run_id: str) -> bool:
        """Whether a chunk has been rendering lately and has not been stored."""
        return bool(self.client.hlen(f"{run_key(self.prefix, run_id)}:busy"))

    def release(self, run_id: str, chunk: int, attempt: Attempt) -> None:
        """An attempt at a chunk stopped before its end, perhaps a while ago: it was no death."""
        key = run_key(self.prefix, run_id)
        keys = [f"{key}:busy", f"{key}:deaths", key]
        self.client.eval(RELEASE, len(keys), *keys, chunk, attempt.number)

    def complete(self, run_id: str, chunk: int, done: int, failed: int) -> bool:
        """Count a complete chunk, once however often it is said. True if it was the last one."""
        key = run_key(self.prefix, run_id)
        with self.client.pipeline() as pipe:
            pipe.setbit(f"{key}:chunks", chunk, 1)
            pipe.bitcount(f"{key}:chunks")
            pipe.hget(key, "chunks")
            pipe.hdel(f"{key}:busy", str(chunk))
            was_complete, chunks_done, chunks, _ = pipe.execute()
            if not was_complete:
                pipe.hincrby(key, "done", done)
                pipe.hincrby(key, "failed", failed)
                touch(pipe, key)
                pipe.execute()
        return chunks is not None and int(chunks_done) >= int(chunks)
