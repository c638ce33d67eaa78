"""The images that an output location has by now: of a finished run those of its dataset, of any
other those that are on record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from jobs.errors import UsageError
from jobs.output import layout
from jobs.output.dataset import Summary, read_rows, read_summary, rows_by_shard
from jobs.output.plan import Plan
from jobs.output.records import Row, read_part
from jobs.output.storage import Storage, open_storage
from producer.control.status import planned_run


@dataclass(frozen=True)
class Collection:
    """plan: None of a finished run. summary: its counts are those of what is there.

    failures: the first of what has no image.
    """

    storage: Storage
    plan: Plan | None
    summary: Summary
    failures: list[Row]

    def rows(self) -> Iterator[Row]:
        """The rows of all images, in manifest order. Raises: as read_part."""
        if self.plan is None:
            return read_rows(self.storage)
        return (row for row in _records(self.storage, self.plan) if row["status"] == "done")


def collect(out: str, failures: int) -> Collection:
    """What is there; at most so many failures. Of a run under way it reads all records.

    Raises:
        UsageError: there is no run, or it has no image yet.
        FatalError, TransientError: the storage does not work.
    """
    storage = open_storage(out)
    summary = read_summary(storage)
    if summary is None:
        raise UsageError(f"{out} is not the output of a run", "Check the path.")
    if summary.state == "finished":
        lost = islice(read_rows(storage, layout.ERRORS), failures if summary.without_image else 0)
        found = Collection(storage, None, summary, list(lost))
    else:
        found = _count(storage, planned_run(storage, summary.run_id), summary, failures)
    if not found.summary.done:
        raise UsageError(f"{out} has no images", "Those of a run under way come a chunk at a time.")
    return found


def _count(storage: Storage, plan: Plan, summary: Summary, failures: int) -> Collection:
    counts, lost = Counter[str](), list[Row]()
    if plan.invalid:
        lost += islice(read_part(storage, layout.invalid(plan.run_id)), failures)
    for row in _records(storage, plan):
        counts[row["status"]] += 1
        if row["status"] != "done" and len(lost) < failures:
            lost.append(row)
    summary = replace(
        summary, done=counts["done"], failed=counts["failed"], rejected=counts["rejected"]
    )
    return Collection(storage, plan, summary, lost)


def _records(storage: Storage, plan: Plan) -> Iterator[Row]:
    """The index is the plan's: a reused record may stand on another line now."""
    for shard in rows_by_shard(storage, plan):
        for request, row in shard:
            if row:
                yield row | {"index": request.index}
