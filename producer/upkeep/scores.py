"""Scores that a finished run's images had, or were to have, and that are gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from jobs.output import layout
from jobs.output.dataset import rows_by_shard
from jobs.output.plan import Plan
from jobs.output.records import Row
from jobs.output.scorers import scorer_names
from jobs.output.scores import ScoreReader, Scoring, read_chosen_by, read_scorings
from jobs.output.storage import Storage


@dataclass(slots=True)
class LostScores:
    """images: paths; scorers, added: names of the plan's scorers, and of others, whose scores some
    of these lack."""

    images: set[str] = field(default_factory=set)
    scorers: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)


def lost_scores(
    storage: Storage, plan: Plan, failed: Iterable[str], dataset: Iterable[Row]
) -> LostScores:
    """The scores that the images of a finished run lack.

    The plan's scorers were to give each image theirs; of another's only those are known to have
    been there that a row of the dataset has.

    failed: as a summary's `unscored`; dataset: rows of the chosen images and of the rejects.

    Raises:
        FatalError: there are scores that are none of ours.
    """
    own = set(scorer_names(plan.scorers))
    shown = read_scorings(storage)
    needed = {one.key: one for one in shown if one.name in own}
    # Whoever takes a scorer's columns off the dataset leaves its scores where they are.
    there = {name.partition(".")[0] for name in storage.list(layout.SCORES)}
    unknown = own - {one.name for one in shown} - (there - set(scorer_names(failed)))
    if plan.chooses:
        chosen_by = read_chosen_by(storage, plan.run_id)
        needed |= {one.key: one for one in chosen_by}
        unknown = unknown - {one.name for one in chosen_by} if chosen_by else own
    found = LostScores()
    readers = [_Reader(storage, plan, one) for one in needed.values()]
    if readers or unknown:
        for row in _done(row for shard in rows_by_shard(storage, plan) for _, row in shard):
            names = {one.name for one in readers if one.lacks(row, one.columns)} | unknown
            if names:
                found.images.add(row["file_name"])
                found.scorers |= names
    readers = [_Reader(storage, plan, one) for one in shown if one.key not in needed]
    if readers:
        for row in _done(dataset):
            names = {one.name for one in readers if one.lacks(row, row.keys())}
            if names:
                found.images.add(row["file_name"])
                found.added |= names
    return found


def _done(rows: Iterable[Row | None]) -> Iterator[Row]:
    return (row for row in rows if row and row["status"] == "done")


class _Reader:
    """What a dataset has of one scorer."""

    def __init__(self, storage: Storage, plan: Plan, scoring: Scoring) -> None:
        self.name, self.columns = scoring.name, frozenset(scoring.all_columns)
        self._relations = frozenset(scoring.relations)
        self._reader = ScoreReader(storage, scoring)
        shards = range(len(plan.shards)) if scoring.relations else ()
        self._relates = all(
            storage.exists(layout.relations(plan.run_id, scoring.key, number)) for number in shards
        )

    def lacks(self, row: Row, columns: Set[str]) -> bool:
        """Whether nothing tells these columns of an image, as far as they are the scorer's."""
        if not self._relates and columns & self._relations:
            return True
        wanted = columns & (self.columns - self._relations)
        return bool(wanted) and self._reader.find(row) is None
