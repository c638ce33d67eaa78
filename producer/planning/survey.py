"""What a manifest would become: counts, and what there is about its lines."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jobs.errors import FatalError, LineError
from jobs.models.table import ModelTable
from producer.planning.blocks import plan_blocks
from producer.planning.grouping import Tallies, join
from producer.planning.listener import Listener, Log
from producer.planning.resolution import PlanOptions

SHOWN_ERRORS = 20
LISTED_ERRORS = 10_000  # where a program reads them


@dataclass(slots=True)
class Remarks:
    """What there is about a manifest's lines: how many, for how many reasons, the first of these.

    most: reasons that are kept.
    """

    most: int = SHOWN_ERRORS
    lines: int = 0
    reasons: int = 0
    first: list[LineError] = field(default_factory=list)

    def add(self, errors: list[LineError]) -> None:
        """Count all reasons of some lines, which come after the lines before."""
        self.lines += len({error.line for error in errors})
        self.reasons += len(errors)
        self.first += errors[: self.most - len(self.first)]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a manifest would become. `lines` stand for `requests`, and for `further` candidates
    that may be needed; `faults` are of other lines.

    doubts: of lines that are taken but may not be meant; is_refused: whether a submission would be;
    unidentified: why nobody can tell now what yet other lines stand for.
    """

    lines: int
    requests: int
    further: int
    faults: Remarks
    doubts: Remarks
    is_refused: bool
    tallies: Tallies
    unidentified: FatalError | None = None


def survey(
    manifest: str,
    table: ModelTable,
    options: PlanOptions,
    listener: Listener | None = None,
    most: int = SHOWN_ERRORS,
) -> Survey:
    """Read and validate a manifest as prepare does; write and send nothing.

    most: reasons to refuse lines that are kept.

    Raises: as prepare, but for ManifestRefused.
    """
    listener = listener or Log()
    tallies: Tallies = {}
    faults, doubts = Remarks(most), Remarks(most)
    lines = requests = 0
    unidentified = None
    for block in plan_blocks(manifest, replace(table, commits={}), options, {}):
        unidentified = block.unidentified
        join(tallies, block.tallies)
        lines += block.lines
        requests += block.requests
        faults.add(block.errors)
        doubts.add(block.doubts)
        listener.planning(requests + faults.lines)
    surely = sum(some.images for some in tallies.values())
    refused = is_refused(requests, faults, options, unidentified)
    return Survey(lines, surely, requests - surely, faults, doubts, refused, tallies, unidentified)


def is_refused(
    requests: int, faults: Remarks, options: PlanOptions, unidentified: FatalError | None
) -> bool:
    """Whether a manifest with these faults is not taken."""
    may_leave_some = requests or unidentified
    return faults.lines > 0 and not (options.skip_invalid and may_leave_some)
