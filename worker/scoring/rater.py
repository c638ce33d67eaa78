"""A scorer at work: whatever it gives is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from PIL.Image import Image

from jobs.errors import FatalError, ImagemillError
from jobs.output.records import Row, Scores
from jobs.output.scores import Scoring, check_scores
from worker.scoring.scorer import Scorer, make_scorer


@dataclass(frozen=True)
class Rater:
    """A scorer, which one thread at a time may use, and how datasets know it."""

    scorer: Scorer
    scoring: Scoring
    _lock: Lock = field(default_factory=Lock)

    def rate(self, images: Sequence[Image], rows: Sequence[Row]) -> dict[str, Scores]:
        """Job id → an image's scores, without those that it has not.

        images: RGB; rows: their records, in the same order, at least one.

        Raises:
            FatalError: the scorer fails, or gives what is no score.
        """
        name, names = self.scoring.name, self.scoring.columns
        try:
            with self._lock:
                columns = self.scorer.score(images, rows)
            found = [columns[one] for one in names]
            whole = all(len(column) == len(rows) for column in found)
        except ImagemillError:
            raise
        except Exception as error:  # of somebody else's code
            raise FatalError(
                f"scorer {name} failed at {rows[0]['file_name']} and the {len(rows) - 1} after "
                f"it: {type(error).__name__}: {error}"
            ) from error
        if not whole or len(columns) != len(found):
            raise FatalError(
                f"scorer {name} gave other columns than it has, or not one value an image",
                f"Its columns are {', '.join(names)}.",
            )
        rated: dict[str, Scores] = {}
        for row, values in zip(rows, zip(*found, strict=True), strict=True):
            named = zip(names, values, strict=True)
            scores = {one: value for one, value in named if value is not None}
            check_scores(scores)
            rated[row["job_id"]] = scores
        return rated


def make_rater(wanted: str, device: str) -> Rater:
    """wanted: NAME or NAME=WEIGHTS. Raises: as make_scorer."""
    name, _, weights = wanted.partition("=")
    return Rater(*make_scorer(name, weights, device))
