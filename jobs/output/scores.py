"""Columns that scorers add to a dataset: of its images, never of the requests that made them.

A scorer's columns of an image are kept by the folder that the image lies in, so that a later run
that takes the image over has them too. Columns that hang on all images of a run are the run's own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import orjson
from pydantic import TypeAdapter, ValidationError

from jobs.errors import FatalError
from jobs.ids import COLUMN, JOB_ID, SCORER, short_digest
from jobs.output import layout
from jobs.output.records import OWN_COLUMNS, Record, Row, Scores, encode_part
from jobs.output.storage import Storage

MAX_TEXT = 1000  # characters of a score
FOLDERS_KEPT = 8  # whose scores are in memory


@dataclass(frozen=True, slots=True)
class Scoring:
    """A scorer as a dataset knows it.

    version: what its scores hang on, such as the weights; columns: of an image; relations: columns
    that hang on all images of a run.
    """

    name: str
    version: str
    columns: tuple[str, ...]
    relations: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What its files are below: another version has others."""
        return f"{self.name}.{short_digest(self.version)}"

    @property
    def all_columns(self) -> tuple[str, ...]:
        return (*self.columns, *self.relations)

    @property
    def is_sound(self) -> bool:
        """Whether name and columns are such, and no column is one of the records' own."""
        names = self.all_columns
        distinct = len(set(names)) == len(names) and not set(names) & OWN_COLUMNS
        return bool(SCORER.fullmatch(self.name)) and distinct and all(map(COLUMN.fullmatch, names))


_SCORING = TypeAdapter(Scoring)
_SCORINGS = TypeAdapter(list[Scoring])


def write_scoring(storage: Storage, scoring: Scoring) -> None:
    """Have a dataset show a scorer's columns; an earlier version of the scorer goes."""
    storage.write(layout.scoring(scoring.name), orjson.dumps(scoring))


def read_scorings(storage: Storage) -> list[Scoring]:
    """The scorers whose columns a dataset shows, by name.

    Raises:
        FatalError: one of them is none of ours.
    """
    found = []
    for file in storage.list(layout.SCORES):
        name, _, end = file.partition(".")
        if end != "json" or not SCORER.fullmatch(name):
            continue
        path = layout.scoring(name)
        try:
            scoring = _SCORING.validate_json(storage.read(path))
        except ValidationError as error:
            raise _foreign(storage, path) from error
        if scoring.name != name or not scoring.is_sound:
            raise _foreign(storage, path)
        found.append(scoring)
    return found


def write_chosen_by(storage: Storage, run_id: str, scorings: Sequence[Scoring]) -> None:
    """Note the scorers by whose scores a run chooses; columns that come later change no choice."""
    storage.write(layout.chosen_by(run_id), orjson.dumps(scorings))


def read_chosen_by(storage: Storage, run_id: str) -> list[Scoring]:
    """The scorers by whose scores a run chooses; none while none has scored.

    Raises:
        FatalError: they are none of ours.
    """
    path = layout.chosen_by(run_id)
    try:
        found = _SCORINGS.validate_json(storage.read(path))
    except FileNotFoundError:
        return []
    except ValidationError as error:
        raise _foreign(storage, path) from error
    if not all(one.is_sound for one in found):
        raise _foreign(storage, path)
    return found


def check_scores(scores: Scores) -> None:
    """Raises FatalError: one is no finite number, truth or text of at most MAX_TEXT characters."""
    for name, value in scores.items():
        if not _is_score(value):
            raise FatalError(
                f"the scorer gave {value!r:.80} as {name}",
                f"Scores are finite numbers, bools, and text of at most {MAX_TEXT} characters.",
            )


def write_scores(storage: Storage, path: str, rows: Iterable[tuple[Row, Scores]]) -> None:
    """Write what images got, each beside its job id and the SHA-256 of its file."""
    found = [{"job_id": r["job_id"], "sha256": r["sha256"], **scores} for r, scores in rows]
    storage.write(path, encode_part(cast("list[Row]", found)))


def write_scores_of(
    storage: Storage, run_id: str, shard: int, chunk: str, records: Sequence[Record]
) -> None:
    """Write what scorers gave the images of a chunk as they were rendered; chunk: its number, and
    whatever tells an attempt at it from others."""
    for key in sorted({key for record in records for key in record.scores}):
        rows = [(one.row(), one.scores[key]) for one in records if key in one.scores]
        write_scores(storage, layout.folder_scores(key, shard, run_id, shard, chunk), rows)


def _is_score(value: object) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is bool or (type(value) is str and len(value) <= MAX_TEXT)


class ScoreReader:
    """One scorer's columns in a dataset, as far as they are there. Reads each file once or so."""

    def __init__(self, storage: Storage, scoring: Scoring) -> None:
        self._storage, self._scoring = storage, scoring
        self._files: dict[int, list[str]] = {}
        folder = layout.scores(scoring.key)
        for name in storage.list(folder):
            if (number := layout.folder_of_scores(name)) is not None:
                self._files.setdefault(number, []).append(f"{folder}/{name}")
        self._read: OrderedDict[int, dict[tuple[str, str], Scores]] = OrderedDict()

    def find(self, row: Row) -> Scores | None:
        """The scores of an image; None if it has none, or has other bytes by now."""
        return self._folder(folder_of(row)).get((row["job_id"], row["sha256"]))

    def relations(self, run_id: str, shard: int) -> dict[str, tuple[str, Scores]]:
        """job id → (SHA-256, columns that hang on all images of the run); empty if not known."""
        if not self._scoring.relations:
            return {}
        path = layout.relations(run_id, self._scoring.key, shard)
        try:
            rows = self._rows(path, self._scoring.relations)
            return {job_id: (sha256, scores) for (job_id, sha256), scores in rows}
        except FileNotFoundError:
            return {}

    def _folder(self, number: int) -> dict[tuple[str, str], Scores]:
        if number not in self._read:
            found: dict[tuple[str, str], Scores] = {}
            for path in self._files.get(number, ()):
                found |= self._rows(path, self._scoring.columns)
            self._read[number] = found
            while len(self._read) > FOLDERS_KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(number)
        return self._read[number]

    def _rows(self, path: str, columns: Sequence[str]) -> Iterator[tuple[tuple[str, str], Scores]]:
        """(job id, SHA-256), scores. Raises FatalError for what imagemill did not write."""
        with self._storage.reader(path) as lines:
            for line in lines:
                try:
                    row = orjson.loads(line)
                    job_id, sha256 = row.pop("job_id"), row.pop("sha256")
                    good = JOB_ID.fullmatch(job_id) and row.keys() <= set(columns)
                    good = good and all(map(_is_score, row.values()))
                except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
                    good = False
                if not good:
                    raise _foreign(self._storage, path)
                yield (job_id, sha256), row


class Joiner:
    """Adds all the columns that a dataset has to the rows of a run."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self._run_id = run_id
        self._readers = [ScoreReader(storage, one) for one in read_scorings(storage)]

    def join(self, shard: int, rows: Sequence[Row]) -> list[Row]:
        """The rows of a plan shard, those with an image with their scores."""
        joined = [cast("dict[str, object]", row) for row in rows]
        for reader in self._readers:
            relations = reader.relations(self._run_id, shard)
            for at, row in enumerate(rows):
                if row["status"] != "done":
                    continue
                sha256, related = relations.get(row["job_id"], ("", {}))
                related = related if sha256 == row["sha256"] else {}
                joined[at] = joined[at] | dict(reader.find(row) or {}) | dict(related)
        return cast("list[Row]", joined)


def folder_of(row: Row) -> int:
    """The number of the folder that an image lies in."""
    return int(row["file_name"].split("/")[1])


def _foreign(storage: Storage, path: str) -> FatalError:
    return FatalError(
        f"{storage.name(path)} is no score that imagemill wrote", "Remove it, then score again."
    )
