"""What a scorer is, and how one is found by its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Protocol, runtime_checkable

from PIL.Image import Image

from jobs.errors import FatalError, ImagemillError, UsageError
from jobs.output.records import Row, Score, Scores
from jobs.output.scorers import find_scorer
from jobs.output.scores import Scoring


class Scorer(Protocol):
    """Scores batches of images. Its class takes no arguments; or `weights`, what the user named, a
    folder or repository, "" if nothing, and `device`, "cpu" or "cuda".

    version: whatever its scores hang on, such as a digest of the weights; with another version the
    images are scored anew. columns: the names of what it gives, none of them one of the records'.
    """

    version: str
    columns: Sequence[str]

    def score(
        self, images: Sequence[Image], rows: Sequence[Row], /
    ) -> Mapping[str, Sequence[Score | None]]:
        """Column → a value an image, whatever others are scored with it; None where it has none.

        images: RGB, at most BATCH of one plan shard; rows: their records, in the same order.
        """


@runtime_checkable
class Relating(Protocol):
    """A scorer that also compares all images of a run; relations: the columns that come of it."""

    relations: Sequence[str]

    def relate(self, images: Iterable[tuple[Row, Scores]], /) -> Iterator[Scores]:
        """Relations of each image, in the dataset's order, as they come.

        images: the record of each, and what the scorer gave it.
        """


def make_scorer(name: str, weights: str, device: str) -> tuple[Scorer, Scoring]:
    """A scorer, and how datasets know it.

    Raises:
        UsageError: there is none of that name, or it does not take these weights.
        FatalError: it cannot be made, or is not what a scorer must be.
    """
    found = find_scorer(name)
    try:
        kind = found.load()
        takes_weights = bool(signature(kind).parameters)
        if weights and not takes_weights:
            raise UsageError(f"scorer {name} takes no weights", f"Say --with {name}.")
        scorer: Scorer = kind(weights=weights, device=device) if takes_weights else kind()
        relations = tuple(scorer.relations) if isinstance(scorer, Relating) else ()
        scoring = Scoring(name, str(scorer.version), tuple(scorer.columns), relations)
    except ImagemillError:
        raise
    except Exception as error:  # of somebody else's code
        raise FatalError(
            f"scorer {name} ({found.value}) cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not scoring.is_sound:
        names = ", ".join(map(repr, scoring.all_columns))
        raise FatalError(
            f"scorer {name} ({found.value}) has columns that cannot be: {names}",
            "Columns are lower-case names, none of them twice or one of metadata.jsonl's own.",
        )
    return scorer, scoring
