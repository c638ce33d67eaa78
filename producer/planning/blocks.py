"""A manifest's blocks of lines → all shards of its plan, in the order of the lines.

What concerns more than one block is done here: lines that repeat earlier ones are refused, and what
fills no pipeline call in its block goes on to shards of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, count, islice
from operator import attrgetter

import numpy as np

from jobs.errors import FatalError, LineError
from jobs.inputs.decoding import give_back
from jobs.models.table import ModelTable
from jobs.output.storage import Storage
from producer.planning.carrying import Carrier
from producer.planning.grouping import Group
from producer.planning.intake import Intake, local_folder
from producer.planning.manifest import Block, read_blocks
from producer.planning.planner import PlannedBlock, Planner, plan_carried, rows_of
from producer.planning.processes import plan_each, uncollected
from producer.planning.rates import Rates
from producer.planning.repeats import Repeats
from producer.planning.resolution import PlanOptions

NO_RATES: Rates = {}
TRIMMED = 32  # blocks, after which what was freed goes back to the system

_DUPLICATE = (
    "repeats an earlier line: custom_ids must be unique, and a line without one must differ from "
    "all others (give each a custom_id or a seed)"
)
_ONE_TWICE = (
    "stands for one image more than once: its combinations must differ, and without a custom_id "
    "seeds that it gives must lie at least n apart"
)


def plan_blocks(
    manifest: str,
    table: ModelTable,
    options: PlanOptions,
    fingerprints: dict[str, str],
    storage: Storage | None = None,
    rates: Rates = NO_RATES,
) -> Iterator[PlannedBlock]:
    """Every block of a manifest, planned, duplicates refused, and shards of what they leave over.

    That the manifest is empty is an error of its. Lines of models whose weights nobody can tell now
    are left out; the last block says so.

    Adds to `fingerprints`, and to the table's commits, as it goes.

    storage: where the bytes of input images go; without it they are only checked; rates: what is
    known of the models' times.

    Raises:
        UsageError, FatalError: the manifest cannot be read; its lines stand for more than
            MAX_EXPANDED images.
    """
    each = options.n * (options.rule.tries if options.rule else 1)
    blocks = read_blocks(manifest, options.limit, each, dict(options.columns), options.keep)
    head = list(islice(blocks, 2))
    folder = local_folder(manifest) if options.local_files else None
    intake = Intake(storage, folder, frozenset(options.stores))
    planner = Planner(table, options, fingerprints, intake, rates, carries=len(head) > 1)
    if head:
        _learn_fingerprints(planner, head[0])
    repeats, is_empty = Repeats(), True
    carrier, homes, shards = Carrier(planner.grouper), dict[str, int](), count()
    for block, result in plan_each(planner, chain(head, blocks)):
        if result.missing:
            result = _learn_fingerprints(planner, block)
        again = np.unique(result.numbers[repeats.add(result.identities)])
        if again.size:
            errors = [LineError(n, "", "", _repetition(result, n)) for n in again.tolist()]
            result = planner.plan(block, frozenset(again.tolist()))
            result = replace(result, errors=result.errors + errors)
        if result.errors:
            result = replace(result, errors=sorted(result.errors, key=attrgetter("line")))
        is_empty = is_empty and not result.requests and not result.errors
        yield replace(result, left=())
        if result.requests:
            number = next(shards)
            if not number % TRIMMED:
                give_back()  # or what is kept of each block would lie between what others needed
            with uncollected():
                homes |= {one.job_id: number for one in rows_of(result.left)}
                carried = [
                    plan_carried(groups, _pop(homes, groups), planner.grouper)
                    for groups in carrier.add(result.left)
                ]
            for one in carried:
                next(shards)
                yield one
    for groups in carrier.end():
        yield plan_carried(groups, _pop(homes, groups), planner.grouper)
    if planner.unidentified:
        yield PlannedBlock(unidentified=_joined(planner.unidentified.values()))
    elif is_empty:
        yield PlannedBlock(errors=[LineError(1, "", "", "the manifest is empty")])


def _repetition(planned: PlannedBlock, number: int) -> str:
    """What a line of the block repeats: itself, or an earlier one."""
    own = planned.identities[planned.numbers == number]
    return _ONE_TWICE if np.unique(own).size < own.size else _DUPLICATE


def _joined(errors: Iterable[FatalError]) -> FatalError:
    some = {error.message: error.hint for error in errors}
    return FatalError("\n".join(some), " ".join(dict.fromkeys(some.values())))


def _pop(homes: dict[str, int], groups: list[Group]) -> frozenset[int]:
    return frozenset(homes.pop(one.job_id) for one in rows_of(groups))


def _learn_fingerprints(planner: Planner, block: Block) -> PlannedBlock:
    """Plan a block, after the fingerprints of all its models are known."""
    while missing := (result := planner.plan(block)).missing:
        planner.learn(sorted(missing))
    return result
