"""Where everything of a run lies in Redis.

<prefix>runs                   sorted set: run id → time of submission
<prefix>run:<id>               hash: out, state, epoch, requests, chunks, done, failed, team, …;
                               models: JSON, of each how many requests the chunks have;
                               device_seconds:<model>: of these
<prefix>run:<id>:chunks        bitmap: chunk number → complete
<prefix>run:<id>:busy          hash: chunk number → "<done> <failed> <attempt>" while it renders
<prefix>run:<id>:next          hash: bulk queue → the next chunk to give out (jobs.broker.turns)
<prefix>run:<id>:attempts      hash: chunk number → how often a worker began it
<prefix>run:<id>:deaths        hash: chunk number → how many attempts never ended
<prefix>run:<id>:suspects      hash: job id → deaths of workers that it was watched in
"""

from __future__ import annotations

import redis

KEEP_SECONDS = 30 * 24 * 3600  # how long a run stays listed after its last change
COST = "device_seconds:"
SUSPECTS = ":suspects"
KEPT = ("", ":chunks", ":busy", ":next", ":attempts", ":deaths")  # of a run, after its own


def run_key(prefix: str, run_id: str) -> str:
    """A run's hash; its other keys begin so."""
    return f"{prefix}run:{run_id}"


def touch(pipe: redis.client.Pipeline, key: str) -> None:
    """Have a pipeline keep a run for KEEP_SECONDS from now on."""
    for name in KEPT:
        pipe.expire(f"{key}{name}", KEEP_SECONDS)


def entering(prefix: str, team: str) -> str:
    """Key of a team's runs that were let in (jobs.broker.quotas) and are not open yet."""
    return f"{prefix}entering:{team}"
