"""The next generation of a run: the same requests, of which those without an image are rendered.

Made from the run's plan alone, so that neither its manifest nor its options are needed again.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from jobs.ids import run_id
from jobs.output import layout
from jobs.output.dataset import now
from jobs.output.plan import Plan, read_shard, write_plan
from jobs.output.storage import Storage
from producer.planning.repeats import Hashes
from producer.planning.reuse import reuse_records

_COPIES = 4  # shards on their way at a time; megabytes each


def next_id(earlier: str) -> str:
    """The id of the run that tries again what an earlier one gave up."""
    return run_id(b"after " + earlier.encode())


def plan_next(storage: Storage, plan: Plan) -> Plan:
    """Plan the generation after a finished run; its images are taken over.

    Raises:
        FatalError, TransientError: the plan is damaged, or the storage does not work.
    """
    new = next_id(plan.run_id)

    def take(shard: int) -> Hashes:
        requests = read_shard(storage, plan.run_id, shard)
        storage.copy(layout.shard(plan.run_id, shard), layout.shard(new, shard))
        ids = "".join(request.job_id[:16] for request in requests)
        return np.frombuffer(bytes.fromhex(ids), np.uint64)

    # The manifest has the columns that its lines keep for the dataset.
    for place in (layout.manifest, layout.invalid):
        storage.copy(place(plan.run_id), place(new))
    with ThreadPoolExecutor(_COPIES) as pool:
        jobs = list(pool.map(take, range(len(plan.shards))))
    kept, reused = reuse_records(storage, new, list(plan.shards), jobs)
    made = replace(plan, run_id=new, created_at=now(), shards=tuple(kept), reused=reused)
    made = replace(made, seconds=plan.seconds * made.left / max(1, plan.left))
    write_plan(storage, made)
    return made
