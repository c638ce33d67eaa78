"""What was found wrong, or not: verdicts, damage, findings, differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.output import layout
from producer.report.console import counted, show

if TYPE_CHECKING:
    from jobs.output.storage import Storage
    from producer.upkeep.comparison import Comparison
    from producer.upkeep.doctor import Finding
    from producer.upkeep.fsck import Damage
    from producer.upkeep.verification import Verdict

SHOWN_PATHS = 20


def show_verdict(verdict: Verdict) -> None:
    """Whether a sample came out the same, and what has changed of the stack where it did not."""
    same = verdict.compared - len(verdict.differences)
    show(f"{same:,} of {verdict.compared:,} images have the same bytes")
    for difference in verdict.differences:
        show(f"{difference.file_name}: {difference.message}")
        for name, (then, now) in difference.stack.items():
            show(f"  {name}: {then} → {now}")
        if not difference.stack:
            show("  on the same stack")
    for model in sorted({one.model for one in verdict.differences if one.model}):
        show(f"Whether this device gives equal bytes at all: imagemill check-determinism {model}")


def show_damage(damage: Damage) -> None:
    """What is wrong with a dataset, its images and their records."""
    for state, paths in damage.found.items():
        for path in paths[:SHOWN_PATHS]:
            show(f"{state}: {path}")
        if len(paths) > SHOWN_PATHS:
            show(f"{state}: … and {len(paths) - SHOWN_PATHS:,} more")
    counts = ", ".join(f"{len(paths):,} {state}" for state, paths in damage.found.items() if paths)
    show(f"{counted(damage.images, 'image')} on record: {counts or 'all are there and whole'}")


def advice_on(damage: Damage, storage: Storage) -> str:
    """What to do about it."""
    if damage.lost:
        if all("/parts/" in path for path in damage.lost):
            return (
                "Nothing is mended while these files cannot be read. Bring them back; or remove "
                f"them: then imagemill fsck {storage.uri} --repair renders again what they told of."
            )
        run = storage.name("/".join(damage.lost[0].split("/")[:2]))
        return (
            f"Nothing is mended without the lost files. Bring them back; or remove {run}, and run "
            "or submit its manifest again into the same place: that renders all of it again."
        )
    if damage.added:
        given = " ".join(f"--with {name}" for name in damage.added)
        files = " and ".join(storage.name(layout.scoring(name)) for name in damage.added)
        return (
            f"Nothing is mended while scores of {', '.join(damage.added)} are gone: imagemill "
            f"score {storage.uri} {given} scores the images again; or remove {files}: then "
            f"imagemill fsck {storage.uri} --repair leaves these columns out."
        )
    scorers = ", ".join(damage.scorers)
    does = {
        "renders again what is missing, torn or without a record": [
            *damage.missing, *damage.torn, *damage.unrecorded
        ],
        f"has images scored again by {scorers}": damage.unscored,
        "writes the dataset anew": damage.stale,
        "removes the orphans": damage.orphans,
    }  # fmt: skip
    acts = " and ".join(act for act, paths in does.items() if paths)
    advice = [f"imagemill fsck {storage.uri} --repair mends this: it {acts}."] if acts else []
    if damage.unreadable:
        advice.append("Unreadable images stay as they are: check who may read them.")
    return "\n".join(advice)


def show_finding(finding: Finding) -> None:
    """One thing that `imagemill doctor` has looked at."""
    show(f"{finding.state:5}  {finding.what}: {finding.detail}")
    if finding.hint:
        show(f"       {finding.hint}")


def show_comparison(found: Comparison) -> None:
    """How far two datasets are apart."""
    only = f"{found.only_first:,} only in the first, {found.only_second:,} only in the second"
    show(f"{counted(found.common, 'request')} in common, {only}")
    if not found.common:
        show("In common are requests of the same content, or else custom_id, with an image in both")
        return
    show(f"{counted(found.equal, 'image')} with the same bytes, {found.changed:,} with others")
    if found.changed > found.incomparable:
        show(
            f"Their pixels differ by {found.mean:.3g} of 255 on average and {found.largest} at "
            f"most; {counted(found.close, 'image')} by no more than 1"
        )
    for change in found.worst:
        far = change.problem or f"{change.mean:.3g} on average, {change.largest} at most"
        show(f"  {change.first}{f' ({change.custom_id})' if change.custom_id else ''}: {far}")
    if found.changed > len(found.worst):
        show(f"  … and {found.changed - len(found.worst):,} more")
    for name, column in sorted(found.columns.items()):
        show(f"{name} differs in {column.requests:,}: {column.first} → {column.second}")
