"""Rows of the models table for pipelines that it does not have yet."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.models.hub import fetch_small
from jobs.models.inspection import FILES, Row, inspect_folder


def inspect_source(source: str, revision: str | None) -> tuple[str, Row]:
    """A name and a row for a folder or a repository, of which only small files are fetched.

    Raises:
        UsageError: it is no pipeline. FatalError: the hub does not have it, or does not answer.
    """
    folder = Path(source)
    if folder.is_dir():
        row = inspect_folder(folder, str(folder.resolve()))
    else:
        row = inspect_folder(fetch_small(source, revision, FILES), source)
        row |= {"revision": revision} if revision else {}
    return re.sub(r"[^a-z0-9_-]+", "-", folder.name.lower()), row
