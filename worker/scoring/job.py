"""Scores the images of a run: shard by shard, only those without scores."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from PIL.Image import Image

from jobs.errors import FatalError, InvalidRequest, UsageError
from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy, check_image
from jobs.output import layout
from jobs.output.choices import Chooser
from jobs.output.dataset import (
    Summary,
    check_scored,
    place_of_row,
    read_finished,
    rewrite_rows,
    rows_of_shard,
)
from jobs.output.images import ImageReader
from jobs.output.plan import Plan, read_plan
from jobs.output.records import Row, Scores, parts_by_lines, parts_by_shard
from jobs.output.scores import (
    ScoreReader,
    Scoring,
    check_scores,
    folder_of,
    read_scorings,
    write_scores,
    write_scoring,
)
from jobs.output.storage import Storage
from worker.scoring.rater import Rater
from worker.scoring.scorer import Relating

BATCH = 32  # images

Progress = Callable[[int, int], None]  # images so far, of how many


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a dataset has now. scored: images that this command scored."""

    scorer: str
    version: str
    columns: tuple[str, ...]
    images: int
    scored: int


def score(storage: Storage, rater: Rater, progress: Progress) -> Outcome:
    """Score the images of a finished run; metadata.jsonl gets the columns.

    Raises:
        UsageError: there is no finished run; or as fill.
        FatalError: as fill. Unscored: images are chosen by scores that are gone; the dataset stays.
    """
    plan, summary = _finished(storage)
    scored = fill(storage, plan, rater, progress)
    relate(storage, plan, rater)
    write_scoring(storage, rater.scoring)
    rewrite_rows(storage, plan)
    scoring = rater.scoring
    images = summary.done + summary.rejects
    return Outcome(scoring.name, scoring.version, scoring.all_columns, images, scored)


def fill(storage: Storage, plan: Plan, rater: Rater, progress: Progress) -> int:
    """Score the images of a run that have no scores of this version yet; returns how many.

    Any number of commands may do the same at once: each begins at another shard, and they leave out
    what they find.

    Raises:
        UsageError: another scorer has given the dataset a column of the same name.
        FatalError: an image is missing or damaged, or the scorer fails. Shards that have their
            scores keep them.
    """
    scoring = rater.scoring
    _check_columns(storage, scoring)
    parts = parts_by_lines(plan, parts_by_shard(storage, plan.run_id))
    run = _Run(storage, plan, scoring, parts)
    seen = scored = 0
    first = random.randrange(len(plan.shards)) if plan.shards else 0
    with closing(_Eyes(storage)) as eyes:
        for number in (*range(first, len(plan.shards)), *range(first)):
            rows, known = run.look(number)
            missing = [row for row in rows if row["job_id"] not in known]
            seen += len(known)
            progress(seen, plan.requests)
            new: dict[str, Scores] = {}
            for batch in _batches(missing):
                new |= rater.rate(eyes.look(batch), batch)
                seen += len(batch)
                progress(seen, plan.requests)
            run.write(number, rows, new, known)
            scored += len(missing)
    return scored


def relate(storage: Storage, plan: Plan, rater: Rater) -> None:
    """Write what an image is among all of the run, if the scorer tells such a thing.

    Quick beside the scores, so made anew. Candidates that were not chosen are none of the run's.
    """
    if not isinstance(rater.scorer, Relating):
        return
    parts = parts_by_lines(plan, parts_by_shard(storage, plan.run_id))
    run = _Run(storage, plan, rater.scoring, parts)
    related = rater.scorer.relate(_scored(run))
    for number in range(len(plan.shards)):
        rows = run.chosen(number)
        path = layout.relations(plan.run_id, rater.scoring.key, number)
        pairs = list(zip(rows, islice(related, len(rows)), strict=True))
        for _, scores in pairs:
            check_scores(scores)
        write_scores(storage, path, pairs)


def _finished(storage: Storage) -> tuple[Plan, Summary]:
    summary = read_finished(storage)
    if plan := read_plan(storage, summary.run_id):
        return plan, summary
    raise UsageError(f"{storage.uri} has lost the plan of run {summary.run_id}", "Run it again.")


def _check_columns(storage: Storage, scoring: Scoring) -> None:
    for other in read_scorings(storage):
        both = set(other.all_columns) & set(scoring.all_columns)
        if other.name != scoring.name and both:
            raise UsageError(
                f"scorer {other.name} has given the dataset a column {min(both)!r} already",
                f"To have that of {scoring.name}, remove "
                f"{storage.name(layout.scoring(other.name))}.",
            )


@dataclass(frozen=True)
class _Run:
    """The run's images, and their scores so far. parts: by shard."""

    storage: Storage
    plan: Plan
    scoring: Scoring
    parts: dict[int, list[str]]

    def rows(self, number: int) -> list[Row]:
        """A shard's rows that have an image, in the dataset's order."""
        shard = rows_of_shard(self.storage, self.plan, number, self.parts.get(number, []))
        return [row for _, row in shard if row and row["status"] == "done"]

    def chosen(self, number: int) -> list[Row]:
        """Of these the ones that the dataset has. Raises Unscored: nobody can tell."""
        if not self.plan.chooses:
            return self.rows(number)
        parts = self.parts.get(number, [])
        known = rows_of_shard(self.storage, self.plan, number, parts)
        choices = self._chooser.choose(known)
        check_scored(self.storage, choices)
        rows = [one.chosen for one in choices if one.chosen and one.chosen["status"] == "done"]
        return sorted(rows, key=place_of_row)

    @cached_property
    def _chooser(self) -> Chooser:
        return Chooser(self.storage, self.plan)

    def look(self, number: int) -> tuple[list[Row], dict[str, Scores]]:
        """A shard's rows, and what storage has of their scores now: job id → scores."""
        rows, reader = self.rows(number), ScoreReader(self.storage, self.scoring)
        return rows, {
            row["job_id"]: found for row in rows if (found := reader.find(row)) is not None
        }

    def write(
        self,
        number: int,
        rows: Sequence[Row],
        new: Mapping[str, Scores],
        known: Mapping[str, Scores],
    ) -> None:
        """Store new scores of a shard, with those known already of the same image folders."""
        changed = {folder_of(row) for row in rows if row["job_id"] in new}
        scores = {**known, **new}
        for folder in changed:
            path = layout.folder_scores(self.scoring.key, folder, self.plan.run_id, number)
            own = [row for row in rows if folder_of(row) == folder]
            pairs = [(row, scores[row["job_id"]]) for row in own]
            write_scores(self.storage, path, pairs)


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


class _Eyes:
    """Reads and decodes images, in threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._reader = ImageReader(storage)
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)
        self._decoding = Decoding()

    def look(self, rows: Sequence[Row]) -> list[Image]:
        """The rows' images, RGB.

        Raises:
            FatalError: one is missing, or is none.
        """
        return list(self._pool.map(self._open, rows, self._reader.read(rows)))

    def _open(self, row: Row, data: bytes) -> Image:
        name = self._storage.name(row["file_name"])
        try:
            check_image(data, InputPolicy(), name)
            return self._decoding.open(data, name).image
        except InvalidRequest as error:
            raise FatalError(str(error)) from error

    def close(self) -> None:
        self._reader.close()
        self._pool.shutdown(cancel_futures=True)


def _scored(run: _Run) -> Iterator[tuple[Row, Scores]]:
    reader = ScoreReader(run.storage, run.scoring)
    for number in range(len(run.plan.shards)):
        for row in run.chosen(number):
            yield row, reader.find(row) or {}
