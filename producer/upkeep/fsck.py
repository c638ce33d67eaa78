"""Compares an output location's records with its images and its dataset, and mends what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain

from jobs.errors import FatalError
from jobs.output import layout
from jobs.output.dataset import (
    IncompleteRun,
    Unscored,
    planned,
    read_finished,
    rewrite_rows,
    stale_files,
    write_summary,
)
from jobs.output.plan import Plan, read_plan
from jobs.output.records import Row, parts_by_shard, read_part, read_row
from jobs.output.storage import Storage
from jobs.settings import Settings
from producer.control.progress import Display
from producer.local.embedded import Crew
from producer.local.occupancy import occupied
from producer.local.whole import finish
from producer.planning.reopening import reopen, reopen_unrecorded, runs_of, unrecorded
from producer.upkeep.scores import LostScores, lost_scores

READERS = 16


@dataclass(frozen=True, slots=True)
class Damage:
    """images: on record, or named by the dataset; missing, torn, unreadable: paths of such;
    orphans: images that nothing names.

    unscored: images without scores that they had or were to have; scorers: whose scores these are;
    added: those of them that are not the run's own: `imagemill score` had added their columns.
    unrecorded: custom_ids of requests whose records are gone; stale: files of the dataset that are
    not what the records say; lost: files of the plan and of records that are gone or cannot be
    read: nothing is mended without them.
    """

    images: int
    missing: list[str]
    torn: list[str]
    unreadable: list[str]
    orphans: list[str]
    unrecorded: list[str]
    stale: list[str]
    lost: list[str]
    unscored: list[str]
    scorers: list[str]
    added: list[str]

    @property
    def is_none(self) -> bool:
        return not any(self.found.values())

    @property
    def found(self) -> dict[str, list[str]]:
        """Kind of damage → paths, or custom_ids."""
        return {
            "lost": self.lost,
            "missing": self.missing,
            "torn": self.torn,
            "unreadable": self.unreadable,
            "unrecorded": self.unrecorded,
            "unscored": self.unscored,
            "stale": self.stale,
            "orphan": self.orphans,
        }


def inspect(storage: Storage) -> Damage:
    """Read every image of a finished run's output location and compare it with its record, and the
    dataset with all records.

    Raises:
        UsageError: no run has finished there; while one goes on, images come before their records.
    """
    summary = read_finished(storage)
    current = summary.run_id
    plan = read_plan(storage, current)
    lost = _lost(storage, current, plan)
    records, unread = _records(storage, current)
    lost += unread
    files = storage.sizes("images").keys()
    there = sorted(records.keys() & files)

    def state(path: str) -> str:
        try:
            digest = sha256(storage.read(path)).hexdigest()
        except FileNotFoundError:  # it has just gone, or is a link to nothing
            return "missing"
        except FatalError:
            return "unreadable"
        return "whole" if digest == records[path] else "torn"

    with ThreadPoolExecutor(READERS) as pool:
        states = list(pool.map(state, there))

    def all_that_are(wanted: str) -> list[str]:
        return [path for path, of in zip(there, states, strict=True) if of == wanted]

    needed, stale, unscored = list[str](), list[str](), LostScores()
    if plan and not lost:
        needed, stale = _compare(storage, plan)
        unscored = lost_scores(storage, plan, summary.unscored, _dataset(storage))
    return Damage(
        images=len(records),
        missing=sorted([*(records.keys() - files), *all_that_are("missing")]),
        torn=all_that_are("torn"),
        unreadable=all_that_are("unreadable"),
        orphans=sorted(filter(layout.is_image, files - records.keys())),
        unrecorded=needed,
        stale=stale,
        lost=lost,
        unscored=sorted(unscored.images),
        scorers=sorted(unscored.scorers | unscored.added),
        added=sorted(unscored.added),
    )


def repair(
    storage: Storage, damage: Damage, settings: Settings, crew: Crew, display: Display
) -> Damage:
    """Render what is missing, torn or without a record again and score what has lost its scores, on
    this machine, write the dataset anew, and then remove orphans; returns what is wrong afterwards.

    Nothing is mended while added scores are gone: the dataset may be the last that has them.
    Orphans stay as long as anything else is wrong: an image may only seem to be one; so do those
    that a run has stored meanwhile, and all of them if a run comes now.

    Raises:
        UsageError: a run goes on there, or somebody else mends it.
        FatalError: the weights are not those of the records, or are not here.
    """
    if damage.lost or damage.added:
        return damage
    with occupied(storage):
        damage = _mend(storage, damage, settings, crew, display)
        if damage.orphans and replace(damage, orphans=[]).is_none:
            damage = _remove_orphans(storage, damage)
    return damage


def _mend(
    storage: Storage, damage: Damage, settings: Settings, crew: Crew, display: Display
) -> Damage:
    """All of repair but the orphans."""
    current = read_finished(storage).run_id
    known = read_plan(storage, current)
    if known is None:
        return damage
    bad = frozenset(damage.missing + damage.torn)
    plan = reopen(storage, current, bad) if bad else None
    if damage.unrecorded:
        plan = reopen_unrecorded(storage, plan or known)
    if damage.unscored:
        plan = plan or known  # with nothing to render, workers score
    if plan:
        write_summary(storage, planned(plan))
        summary = finish(plan, storage, settings, crew, display)
        for scorer, problem in summary.unscored.items():
            display.warning(f"No scores of {scorer}: {problem}")
    elif damage.stale:
        rewrite_rows(storage, known)
    if bad or damage.unrecorded or damage.unscored or damage.stale:
        return inspect(storage)
    return damage


def _remove_orphans(storage: Storage, damage: Damage) -> Damage:
    """Remove the orphans that nothing names by now; returns what is wrong afterwards.

    Raises:
        UsageError: a run goes on there.
    """
    before = read_finished(storage)
    records, lost = _records(storage, before.run_id)
    if lost or read_finished(storage) != before:  # others may be named by what is there now
        return replace(damage, lost=lost)
    for path in damage.orphans:
        if path not in records:
            storage.remove(path)
    return replace(damage, orphans=[])


def _lost(storage: Storage, run_id: str, plan: Plan | None) -> list[str]:
    """Files of a run's plan that are gone."""
    if plan is None:
        return [layout.plan(run_id)]
    needed = [layout.shard(run_id, number) for number in range(len(plan.shards))]
    folder = layout.shard(run_id, 0).rpartition("/")[0]
    there = {f"{folder}/{name}" for name in storage.list(folder)}
    others = [layout.invalid(run_id)] if plan.invalid else []
    others += [layout.manifest(run_id)] if plan.keeps else []
    there |= {path for path in others if storage.exists(path)}
    return [path for path in needed + others if path not in there]


def _compare(storage: Storage, plan: Plan) -> tuple[list[str], list[str]]:
    """(custom_ids of requests without a record, files of the dataset that are stale)."""
    try:
        return [], stale_files(storage, plan)
    except (IncompleteRun, Unscored):
        found = unrecorded(storage, plan)
        return [one.custom_id for requests in found.values() for one in requests], []


def _records(storage: Storage, current: str) -> tuple[dict[str, str], list[str]]:
    """(path → SHA-256 of all images that a record or the dataset names, parts that cannot be read).

    current: the run whose dataset is there.
    """
    # What people load counts least, but no image of it is an orphan.
    records = dict(_images(_dataset(storage)))
    lost: list[str] = []
    # Its own records count most: an image may have been rendered anew for it.
    for run_id in runs_of(storage, current):
        for parts in parts_by_shard(storage, run_id).values():
            for part in parts:
                try:
                    records |= dict(_images(read_part(storage, part)))
                except FatalError:
                    lost.append(part)
    return records, lost


def _dataset(storage: Storage) -> Iterator[Row]:
    """The rows of what has images, chosen and not."""
    return chain(_rows(storage, layout.METADATA), _rows(storage, layout.REJECTS))


def _rows(storage: Storage, name: str) -> Iterator[Row]:
    """The rows of a dataset's file, as far as they can be read."""
    with suppress(FileNotFoundError, FatalError), storage.reader(name) as lines:
        for line in lines:
            with suppress(FatalError):
                yield read_row(line, name)


def _images(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    for row in rows:
        if row["status"] == "done":
            yield row["file_name"], row.get("sha256", "")
