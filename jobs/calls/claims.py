"""The worker's side of interactive calls: take some, keep them, answer them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import cast

import redis

from jobs.broker.seals import Seal
from jobs.calls.call import Answer, Call, CallKeys, decode_call, encode_answer

TAKES = 3  # a call that was taken so often without an answer is given up
RENEW_SECONDS = 0.5  # how often a living worker's claims are to be renewed
ANSWER_SECONDS = 60  # how long an answer waits for whoever asked

log = logging.getLogger(__name__)

_Taken = tuple[bytes, bytes, int, bytes]  # its set, its member, how often taken before, its body

# KEYS: the waiting sets of some models. ARGV: seconds of the claim, what the key of a call begins
# with, what that of its takes begins with, then the slots of each model.
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
local key, slots, group = KEYS[chosen], tonumber(ARGV[3 + chosen]), nil
for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now)) do
  local its_group, id = string.sub(member, 1, 16), string.sub(member, 18)
  local before = tonumber(redis.call('GET', ARGV[3] .. id) or 0)
  if #taken < slots and (not group or (its_group == group and before == 0)) then
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

# KEYS: the call's answer, its body, its takes, its team's calls, the calls that wait. ARGV: answer,
# seconds that it waits for whoever asked, id, member. Of several answers the first stays; whatever
# may lie in the place of the last two, it is heard.
ANSWER = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, 0)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('ZREM', KEYS[4], ARGV[3])
redis.call('ZREM', KEYS[5], ARGV[4])
"""


class Claims:
    """The calls that this worker is at. Raises redis.RedisError when Redis is away.

    seconds: after that a dead worker's calls may be taken again.
    """

    def __init__(
        self,
        client: redis.Redis,
        prefix: str,
        seal: Seal,
        seconds: float = 3.0,
    ) -> None:
        self._client = client
        self._seconds = seconds
        self._keys = CallKeys(prefix)
        self._seal = seal
        self._take = client.register_script(TAKE)
        self._answer = client.register_script(ANSWER)
        self._kept: list[tuple[str, list[str]]] = []  # a set of calls that wait, members of it
        self._lock = Lock()

    def any_waits(self, models: Collection[str]) -> bool:
        """Whether any of some models has a call that no answer has been given to: one command."""
        return bool(models and self._client.exists(*map(self._keys.waiting, models)))

    def take(self, slots: Mapping[str, int]) -> list[Call]:
        """Claim calls that can share a batch; empty if none waits.

        slots: the models to look for, and how many requests a call of each has room for.
        """
        sets = [self._keys.waiting(model) for model in slots]
        beginnings = [self._keys.call(""), self._keys.takes("")]
        while True:
            found = self._take(sets, [self._seconds, *beginnings, *slots.values()])
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
                self.answer(call, Answer("failed", "worker_died", message))

    @contextmanager
    def keep(self, calls: Sequence[Call]) -> Iterator[None]:
        """Have `renew` hold the claim on calls that are being rendered, however long that takes."""
        kept = self._keys.waiting(calls[0].request.key.model), [call.member for call in calls]
        with self._lock:
            self._kept.append(kept)
        try:
            yield
        finally:
            with self._lock:  # a renewal under way ends first: it must not undo what comes after
                self._kept.remove(kept)

    def renew(self) -> None:
        """Renew the claims that are kept.

        One thread of the process does so all the time: with one of its own, each batch of calls
        would wait for its start and its end.
        """
        with self._lock:
            if not self._kept:
                return
            seconds, micros = self._client.time()
            until = seconds + micros / 1e6 + self._seconds
            with self._client.pipeline(transaction=False) as pipe:
                for waiting, members in self._kept:
                    # XX: never bring back a call that was answered or withdrawn meanwhile.
                    pipe.zadd(waiting, dict.fromkeys(members, until), xx=True)
                pipe.execute()

    def hand_back(self, calls: Sequence[Call], seconds: float) -> None:
        """Leave calls to other workers, who may take them at once, and we after so many seconds."""
        now, micros = self._client.time()
        with self._client.pipeline() as pipe:
            for call in calls:
                waiting = self._keys.waiting(call.request.key.model)
                pipe.zadd(waiting, {call.member: now + micros / 1e6 + seconds}, xx=True)
                pipe.decr(self._keys.takes(call.id))
            pipe.execute()

    def answer(self, call: Call, answer: Answer) -> None:
        """Hand an answer to whoever waits; a second one changes nothing."""
        keys = self._keys
        self._answer(
            [
                keys.answer(call.id), keys.call(call.id), keys.takes(call.id),
                keys.team(call.team), keys.waiting(call.request.key.model),
            ],
            [encode_answer(answer), ANSWER_SECONDS, call.id, call.member],
        )  # fmt: skip
