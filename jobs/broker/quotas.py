"""What a team may have at most: device seconds a day, as estimated, and images in flight.

    <prefix>quota:<team>:<day>     hash: run id → device seconds that it was let in with on that day
    <prefix>entering:<team>        hash: run id → "<images> <Unix seconds>": let in, not open yet

Days are UTC. After a wiped Redis a day begins anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import redis

from jobs.broker.keys import entering, run_key
from jobs.errors import UsageError
from jobs.output.plan import Plan
from jobs.settings import Team

KEEP_SECONDS = 2 * 24 * 3600  # a day's hash
ENTER_SECONDS = 300  # whoever was let in has opened its run by then, or has died

_MORE_THAN_EVER = "That is more than it ever has: split the manifest, or raise the quota."


class QuotaExceeded(UsageError):
    """A team has not enough left for a run."""


# KEYS: the day's hash, the run, all runs, those that enter. ARGV: run id, team, device seconds,
# images, both limits, prefix of runs, seconds to keep, seconds to enter. Lets a run in, once
# however often it is said. Returns what of the team counts already if that is too much: {"images"
# or "seconds", how many}.
ADMIT = """
local state = redis.call('HGET', KEYS[2], 'state')
if state == 'running' or state == 'paused' then return false end
local in_flight, now = 0, tonumber(redis.call('TIME')[1])
for _, id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  local run = redis.call('HMGET', ARGV[7] .. id, 'team', 'state', 'requests', 'done', 'failed')
  if run[1] == ARGV[2] and (run[2] == 'running' or run[2] == 'paused') then
    local left = (tonumber(run[3]) or 0) - (tonumber(run[4]) or 0) - (tonumber(run[5]) or 0)
    in_flight = in_flight + math.max(0, left)
  end
end
local entering = redis.call('HGETALL', KEYS[4])
for i = 1, #entering, 2 do
  local images, at = string.match(entering[i + 1], '^(%d+) (%d+)$')
  if not at or now - tonumber(at) > tonumber(ARGV[9]) then
    redis.call('HDEL', KEYS[4], entering[i])
  elseif entering[i] ~= ARGV[1] then
    in_flight = in_flight + tonumber(images)
  end
end
if in_flight + ARGV[4] > tonumber(ARGV[6]) then return {'images', tostring(in_flight)} end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  local used = 0
  for _, spent in ipairs(redis.call('HVALS', KEYS[1])) do used = used + (tonumber(spent) or 0) end
  if used + ARGV[3] > tonumber(ARGV[5]) then return {'seconds', tostring(used)} end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
end
redis.call('HSET', KEYS[4], ARGV[1], ARGV[4] .. ' ' .. now)
redis.call('EXPIRE', KEYS[4], ARGV[9])
return false
"""


@dataclass(frozen=True)
class Quotas:
    """The quotas of one installation. Raises redis.RedisError when Redis is away."""

    client: redis.Redis
    prefix: str

    def admit(self, plan: Plan, team: Team, now: datetime | None = None) -> None:
        """Let a planned run of a team in. One that goes on already, or was let in today, is in.

        Raises:
            QuotaExceeded: says what is left, and when it renews.
        """
        moment = now or datetime.now(UTC)
        keys = (
            f"{self.prefix}quota:{plan.team}:{moment:%Y-%m-%d}",
            run_key(self.prefix, plan.run_id),
            f"{self.prefix}runs",
            entering(self.prefix, plan.team),
        )
        seconds = team.device_seconds_a_day
        images = team.images_in_flight
        refused = self.client.eval(
            ADMIT, len(keys), *keys, plan.run_id, plan.team, plan.seconds, plan.left,
            math.inf if seconds is None else seconds, math.inf if images is None else images,
            run_key(self.prefix, ""), KEEP_SECONDS, ENTER_SECONDS,
        )  # fmt: skip
        if not refused:
            return
        what, counted = cast("list[bytes]", refused)
        if what == b"images":
            left = max(0, (images or 0) - int(float(counted)))
            raise QuotaExceeded(
                f"team {plan.team} may have {images:,} images in flight and has {left:,} of them "
                f"left; run {plan.run_id} has {plan.left:,}",
                _MORE_THAN_EVER
                if plan.left > (images or 0)
                else "It has more when its other runs are further: imagemill status.",
            )
        rest = max(0.0, (seconds or 0.0) - float(counted))
        renewed = (moment + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        raise QuotaExceeded(
            f"team {plan.team} may use {seconds:,.0f} device seconds a day and has {rest:,.0f} of "
            f"them left; run {plan.run_id} takes about {plan.seconds:,.0f}",
            _MORE_THAN_EVER
            if plan.seconds > (seconds or 0.0)
            else f"It has all of them again at {renewed:%Y-%m-%d %H:%M} UTC.",
        )
