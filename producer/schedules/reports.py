"""What a watcher notes of a manifest in an inbox: that it is taken on, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter

from jobs.errors import ImagemillError, LineError, ManifestRefused


@dataclass(frozen=True, slots=True)
class Taken:
    """Since when a manifest is taken on, and what it will be called when it is filed.

    digest: of its bytes, which tell it from others of its name.
    """

    at: datetime
    filed: str
    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a manifest. errors: the first bad lines; all_errors: where all of them are."""

    state: Literal["accepted", "rejected"]
    manifest: str
    taken_at: str
    filed_at: str
    run_id: str = ""
    out: str = ""
    requests: int = 0
    invalid: int = 0
    reason: str = ""
    errors: tuple[LineError, ...] = ()
    all_errors: str = ""


TAKEN_RECORD = TypeAdapter(Taken)


def rejected(report: Report, error: ImagemillError) -> Report:
    """The report of a manifest that was refused."""
    if not isinstance(error, ManifestRefused):
        return replace(report, state="rejected", reason=str(error))
    return replace(
        report,
        state="rejected",
        reason=f"{error.message.partition(';')[0]}, the first: {error.errors[0]}",
        invalid=error.total,
        errors=tuple(error.errors),
        all_errors=error.report,
    )
