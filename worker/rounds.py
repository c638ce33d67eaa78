"""Rounds of candidates: what comes after the first is known once that has its scores."""

from __future__ import annotations

from jobs.broker.dispatch import Dispatcher, start_run
from jobs.broker.runs import Runs
from jobs.output import layout
from jobs.output.choices import Chooser
from jobs.output.dataset import rows_by_shard
from jobs.output.plan import Place, Plan, read_shard
from jobs.output.records import chunks_done, write_part
from jobs.output.storage import Storage


def begin_round(plan: Plan, storage: Storage, runs: Runs, dispatcher: Dispatcher) -> bool:
    """Queue the candidates that are needed now; False if none is, and the dataset may be written.

    All chunks of the round before must be complete, and their images scored. A chunk that is not
    needed is complete at once, with no records.

    Raises:
        redis.RedisError: Redis is away.
    """
    done = chunks_done(storage, plan)
    images = failed = needed = 0
    chunks: dict[Place, bool] = {}  # those that are left: whether anything of them is needed
    chooser = Chooser(storage, plan)
    for number, known in enumerate(rows_by_shard(storage, plan)):
        images += sum(row is not None and row["status"] == "done" for _, row in known)
        failed += sum(row is not None and row["status"] != "done" for _, row in known)
        wanted = {one.job_id for choice in chooser.choose(known) for one in choice.needed}
        needed += len(wanted)
        left = [i for i in range(len(plan.shards[number].chunks)) if (number, i) not in done]
        requests = read_shard(storage, plan.run_id, number) if left else []
        for i in left:
            chunk = plan.shards[number].chunks[i]
            rows = requests[chunk.start : chunk.stop]
            chunks[number, i] = any(request.job_id in wanted for request in rows)
    first = min(
        (plan.shards[s].chunks[c].round for (s, c), some in chunks.items() if some), default=None
    )
    for (shard, i), some in chunks.items():
        if not some and (first is None or plan.shards[shard].chunks[i].round <= first):
            write_part(storage, layout.done_part(plan.run_id, shard, i), [])
    if first is None:
        return False
    start_run(plan, storage, runs, dispatcher, (images + failed + needed, images, failed))
    return True
