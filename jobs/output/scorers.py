"""Which scorers are installed, by name. Loads none: their code is the worker side's."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from jobs.errors import InvalidRequest, UsageError, resembling
from jobs.requests import Rule

GROUP = "imagemill.scorers"  # of entry points: name → class

_OWN = {
    "statistics": "worker.scoring.statistics:Statistics",
    "duplicates": "worker.scoring.duplicates:Duplicates",
    "clip": "worker.scoring.clip:ClipScore",
    "shapes": "worker.scoring.shapes:Shapes",
}
_WEIGHTS = {"clip": "openai/clip-vit-large-patch14"}  # such as; the user names them
# Of each image by itself: what hangs on all of them comes too late to choose by.
_NUMBERS = {
    "statistics": ("blank", "contrast", "brightness", "saturation", "colourfulness", "sharpness"),
    "duplicates": (),
    "clip": ("clip",),
    "shapes": ("shapes",),
}
_TEXTS = {"pixel_hash": "duplicates", "pdq": "duplicates", "shapes_wrong": "shapes"}


def find_scorer(name: str) -> EntryPoint:
    """Where its class is. Our own names are nobody else's.

    Raises:
        UsageError: there is none of that name.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    found |= {own: EntryPoint(own, value, GROUP) for own, value in _OWN.items()}
    if name not in found:
        known = ", ".join(sorted(found))
        raise UsageError(f"no scorer is called {name!r}", f"There are: {known}.")
    return found[name]


def scorers_of(given: Iterable[str] | None) -> tuple[str, ...]:
    """Scorers as a command names them, NAME or NAME=WEIGHTS, as a plan names them: folders of
    weights with their whole paths.

    Raises:
        UsageError: there is no such scorer, it lacks weights, or it is named twice.
    """
    found: dict[str, str] = {}
    for one in given or ():
        name, _, weights = one.partition("=")
        find_scorer(name)
        if name in _WEIGHTS and not weights:
            example = f"{name}={_WEIGHTS[name]}"
            raise UsageError(
                f"scorer {name} needs weights", f"Name a folder or a repository: {example}"
            )
        if name in found:
            raise UsageError(f"scorer {name} is named twice", "Its columns can be there once.")
        folder = Path(weights)
        whole = str(folder.resolve()) if weights and folder.is_dir() else weights
        found[name] = f"{name}={whole}" if whole else name
    return tuple(found.values())


def scorer_names(wanted: Iterable[str]) -> tuple[str, ...]:
    """The names of scorers as a plan names them."""
    return tuple(one.partition("=")[0] for one in wanted)


def check_rule(rule: Rule, scorers: Iterable[str]) -> None:
    """See whether images can be chosen by the columns of a rule.

    Those of others' scorers are known only where they run: with one of them, they may be any.

    Raises:
        InvalidRequest: none of these scorers gives an image such a column, or it is no number; the
            field is the rule's.
    """
    names = set(scorer_names(scorers))
    if names - _NUMBERS.keys():
        return
    known = [column for name in sorted(names) for column in _NUMBERS[name]]
    wanted = [("by", rule.by)] if rule.by else []
    wanted += [("min", name) for name, _ in rule.least] + [("max", name) for name, _ in rule.most]
    for field, column in wanted:
        if column in known:
            continue
        if _TEXTS.get(column) in names:
            reason = f"column {column!r} is text, and images are chosen by numbers"
        else:
            advice = resembling(column, known) or "; name one with --score"
            reason = f"no scorer of the run gives a column {column!r}{advice}"
        raise InvalidRequest(field, reason)
