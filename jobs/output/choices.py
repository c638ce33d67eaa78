"""Which candidates for an image are needed, and which of them is chosen.

A function of the records and scores of all candidates alone: whoever asks, and whatever has died
meanwhile, finds the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import cast

from jobs.output.plan import Plan
from jobs.output.records import Row, Score
from jobs.output.scorers import scorer_names
from jobs.output.scores import ScoreReader, read_chosen_by
from jobs.output.storage import Storage
from jobs.requests import Request, Rule

Known = tuple[Request, Row | None]  # a candidate, and its record if it has one


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of an image.

    needed: candidates to be rendered next; if there are any, nothing is chosen yet. chosen: the
    image's row; that of a request without an image if none passes. rejects: the rows of all other
    candidates that were needed. unscored: scorers that it is chosen by and that have not scored
    each of its candidates; if there are any, nothing is chosen yet, and perhaps less is needed.
    """

    needed: tuple[Request, ...] = ()
    chosen: Row | None = None
    rejects: tuple[Row, ...] = ()
    unscored: tuple[str, ...] = ()


class Chooser:
    """Chooses among a run's candidates, by the scores of its own scorers."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        scorings = read_chosen_by(storage, plan.run_id)
        self._readers = [(one.name, ScoreReader(storage, one)) for one in scorings]
        self._unknown = () if scorings else scorer_names(plan.scorers)

    def choose(self, shard: Sequence[Known]) -> list[Choice]:
        """The choices of a plan shard, whose requests and records these are."""
        images: dict[str, list[Known]] = {}
        for request, row in shard:
            first = request.candidate.image if request.candidate else request.job_id
            images.setdefault(first, []).append((request, row))
        return [self._choose(sorted(some, key=_number)) for some in images.values()]

    def _choose(self, candidates: Sequence[Known]) -> Choice:
        candidate = candidates[0][0].candidate
        rule = candidate.rule if candidate else Rule()
        seen: list[tuple[Row, Mapping[str, Score]]] = []
        passing: list[Row] = []
        values: list[float] = []
        unscored: set[str] = set()
        for number, (request, row) in enumerate(candidates):
            if number >= rule.best_of and len(passing) >= rule.best_of:
                break
            if row is None:
                # Of the first ones all, of the others only the next.
                first = [one for one, known in candidates[number : rule.best_of] if known is None]
                return Choice(tuple(first or [request]), unscored=tuple(sorted(unscored)))
            scores, lacking = self._scores(row)
            unscored |= lacking
            seen.append((row, scores))
            if row["status"] == "rejected":  # its own fault, which no other seed mends
                break
            if row["status"] == "done" and _passes(rule, scores):
                passing.append(row)
                values.append(_number_of(scores, rule.by, float("-inf")))
        if unscored:
            return Choice(unscored=tuple(sorted(unscored)))
        rows = [row for row, _ in seen]
        if all(row["status"] != "done" for row in rows):
            return Choice((), rows[-1] | {"candidates": len(rows)}, tuple(rows[:-1]))
        if not passing:
            return Choice((), _without(rule, rows), tuple(rows))
        best = passing[values.index(max(values))]
        rejects = tuple(row for row in rows if row is not best)
        return Choice((), best | {"candidates": len(rows)}, rejects)

    def _scores(self, row: Row) -> tuple[Mapping[str, Score], Set[str]]:
        """The scores of a candidate, and the scorers that it has none of."""
        found: dict[str, Score] = {}
        if row["status"] != "done":
            return found, frozenset()
        lacking = set(self._unknown)
        for name, reader in self._readers:
            scores = reader.find(row)
            found |= scores or {}
            if scores is None:
                lacking.add(name)
        return found, lacking


def _number(known: Known) -> int:
    candidate = known[0].candidate
    return candidate.number if candidate else 0


def _number_of(scores: Mapping[str, Score], name: str, default: float) -> float:
    value = scores.get(name)
    return float(value) if isinstance(value, int | float) else default


def _passes(rule: Rule, scores: Mapping[str, Score]) -> bool:
    """Whether it meets all bounds. What has no such score meets none."""
    nan = float("nan")
    return all(_number_of(scores, name, nan) >= bound for name, bound in rule.least) and all(
        _number_of(scores, name, nan) <= bound for name, bound in rule.most
    )


def _without(rule: Rule, rows: Sequence[Row]) -> Row:
    """The row of a request that has candidates with images, none of which passes."""
    bounds = [f"{name} >= {bound:g}" for name, bound in rule.least]
    bounds += [f"{name} <= {bound:g}" for name, bound in rule.most]
    first = {name: value for name, value in rows[0].items() if name not in _OF_FILES}
    first |= {
        "status": "rejected",
        "code": "none_passed",
        "message": f"none of {len(rows)} candidates has {' and '.join(bounds)}",
        "candidates": len(rows),
    }
    return cast("Row", first)


_OF_FILES = frozenset(("file_name", "sha256", "bytes"))
