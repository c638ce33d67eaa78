"""Scores the images of a finished run: shard by shard, only those without scores."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from PIL.Image import Image

from jobs.errors import FatalError, ImagemillError, InvalidRequest, UsageError
from jobs.inputs.decoding import Decoding
from jobs.inputs.images import InputPolicy, check_image
from jobs.output import layout
from jobs.output.dataset import Summary, read_finished, rewrite_rows, rows_of_shard
from jobs.output.images import ImageReader
from jobs.output.plan import Plan, read_plan
from jobs.output.records import Row, parts_by_shard
from jobs.output.scores import (
    ScoreReader,
    Scores,
    Scoring,
    folder_of,
    read_scorings,
    write_scores,
    write_scoring,
)
from jobs.output.storage import Storage
from worker.scoring.scorer import Relating, Scorer

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


def score(storage: Storage, scorer: Scorer, scoring: Scoring, progress: Progress) -> Outcome:
    """Score the images that have no scores of this version yet; metadata.jsonl gets the columns.

    Any number of commands may do the same at once: each begins at another shard, and they leave out
    what they find.

    Raises:
        UsageError: there is no finished run, or another scorer has a column of the same name.
        FatalError: an image is missing or damaged, or the scorer fails. Shards that have their
            scores keep them.
    """
    plan, summary = _finished(storage)
    _check_columns(storage, scoring)
    run = _Run(storage, plan, scoring, parts_by_shard(storage, plan.run_id))
    seen = scored = 0
    first = random.randrange(len(plan.shards)) if plan.shards else 0
    with closing(_Eyes(storage)) as eyes:
        for number in (*range(first, len(plan.shards)), *range(first)):
            rows, known = run.look(number)
            missing = [row for row in rows if row["job_id"] not in known]
            seen += len(known)
            progress(seen, summary.done)
            new: dict[str, Scores] = {}
            for batch in _batches(missing):
                new |= _score(scorer, scoring, eyes.look(batch), batch)
                seen += len(batch)
                progress(seen, summary.done)
            run.write(number, rows, new, known)
            scored += len(missing)
    if isinstance(scorer, Relating):
        _relate(run, scorer)
    write_scoring(storage, scoring)
    rewrite_rows(storage, plan)
    return Outcome(scoring.name, scoring.version, scoring.all_columns, summary.done, scored)


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
        key, columns = self.scoring.key, self.scoring.columns
        for folder in changed:
            path = layout.folder_scores(key, folder, self.plan.run_id, number)
            own = [row for row in rows if folder_of(row) == folder]
            pairs = [(row, scores[row["job_id"]]) for row in own]
            write_scores(self.storage, path, columns, pairs)


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


def _score(
    scorer: Scorer, scoring: Scoring, images: list[Image], rows: Sequence[Row]
) -> dict[str, Scores]:
    """job id → an image's scores, without those that it has not."""
    try:
        columns = scorer.score(images, rows)
        found = [columns[name] for name in scoring.columns]
        whole = all(len(column) == len(rows) for column in found)
    except ImagemillError:
        raise
    except Exception as error:  # of somebody else's code
        raise FatalError(
            f"scorer {scoring.name} failed at {rows[0]['file_name']} and the {len(rows) - 1} after "
            f"it: {type(error).__name__}: {error}"
        ) from error
    if not whole or len(columns) != len(found):
        raise FatalError(
            f"scorer {scoring.name} gave other columns than it has, or not one value an image",
            f"Its columns are {', '.join(scoring.columns)}.",
        )
    named = [dict(zip(scoring.columns, one, strict=True)) for one in zip(*found, strict=True)]
    return {
        row["job_id"]: {name: value for name, value in one.items() if value is not None}
        for row, one in zip(rows, named, strict=True)
    }


def _relate(run: _Run, scorer: Relating) -> None:
    """Write what an image is among all of the run. Quick beside the scores, so made anew."""
    related = scorer.relate(_scored(run))
    for number in range(len(run.plan.shards)):
        rows = run.rows(number)
        path = layout.relations(run.plan.run_id, run.scoring.key, number)
        pairs = list(zip(rows, islice(related, len(rows)), strict=True))
        write_scores(run.storage, path, run.scoring.relations, pairs)


def _scored(run: _Run) -> Iterator[tuple[Row, Scores]]:
    reader = ScoreReader(run.storage, run.scoring)
    for number in range(len(run.plan.shards)):
        for row in run.rows(number):
            yield row, reader.find(row) or {}
