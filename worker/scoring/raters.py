"""The scorers of runs in a worker: they score what was just stored, and what has no scores yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock

from jobs.errors import ImagemillError, TransientError
from jobs.inputs.decoding import Decoding
from jobs.output.plan import Plan
from jobs.output.records import Record, Scores
from jobs.output.scores import write_chosen_by, write_scoring
from jobs.output.storage import Storage
from worker.scoring.job import fill, relate
from worker.scoring.rater import Rater, make_rater

RETRY_SECONDS = 60.0  # until a scorer that failed while images were stored is tried again

log = logging.getLogger(__name__)


@dataclass
class Raters:
    """Scorers by how plans name them, each made once. Many threads may ask.

    device: of those with weights, "cpu" or "cuda".
    """

    device: str
    decoding: Decoding = field(default_factory=Decoding)
    _made: dict[str, Rater] = field(default_factory=dict)
    _failed: dict[str, float] = field(default_factory=dict)  # when, in monotonic seconds
    _lock: Lock = field(default_factory=Lock)

    def get(self, wanted: str) -> Rater:
        """Raises: as make_rater."""
        with self._lock:
            if wanted not in self._made:
                self._made[wanted] = make_rater(wanted, self.device)
            return self._made[wanted]

    def rate(self, stored: Sequence[tuple[Record, bytes]], scorers: Sequence[str]) -> list[Record]:
        """The records of stored files with scores. A scorer that fails costs no image."""
        done = [(record, data) for record, data in stored if record.status == "done"]
        if not done:
            return [record for record, _ in stored]
        images = [self.decoding.open(data, record.file_name).image for record, data in done]
        rows = [record.row() for record, _ in done]
        found: dict[str, dict[str, Scores]] = {}  # by the scorer's key, then by job id
        for wanted in scorers:
            if time.monotonic() - self._failed.get(wanted, -RETRY_SECONDS) < RETRY_SECONDS:
                continue
            try:
                rater = self.get(wanted)
                found[rater.scoring.key] = rater.rate(images, rows)
            except ImagemillError as error:
                self._failed[wanted] = time.monotonic()
                log.error("Images stay without scores for now: %s", error)
        return [replace(record, scores=_of(record.request.job_id, found)) for record, _ in stored]

    def score(self, storage: Storage, plan: Plan) -> dict[str, str]:
        """Score the images of a run that have no scores yet: scorer → why it could not.

        Where the run chooses among candidates, it does so by these scorers from then on.

        Raises:
            TransientError: storage is away.
        """
        problems: dict[str, str] = {}
        raters: list[Rater] = []
        for wanted in plan.scorers:
            with _told(wanted, problems):
                rater = self.get(wanted)
                fill(storage, plan, rater, lambda *_: None)
                raters.append(rater)
        if plan.chooses:
            if problems:
                return problems  # nothing is chosen, so nothing is written
            write_chosen_by(storage, plan.run_id, [rater.scoring for rater in raters])
        for rater in raters:
            with _told(rater.scoring.name, problems):
                relate(storage, plan, rater)
                write_scoring(storage, rater.scoring)
        return problems


@contextmanager
def _told(scorer: str, problems: dict[str, str]) -> Iterator[None]:
    """A scorer that fails is noted. Raises TransientError, as storage is away."""
    try:
        yield
    except TransientError:
        raise
    except ImagemillError as error:
        problems[scorer] = str(error)
        log.error("%s: %s", scorer, error)


def _of(job_id: str, found: dict[str, dict[str, Scores]]) -> dict[str, Scores]:
    return {key: rated[job_id] for key, rated in found.items() if job_id in rated}
