"""Rows of the models table for pipelines that it does not have yet."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.errors import FatalError
from jobs.models.hub import advice
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
        row = inspect_folder(_fetch(source, revision), source)
        row |= {"revision": revision} if revision else {}
    return re.sub(r"[^a-z0-9_-]+", "-", folder.name.lower()), row


def _fetch(repo: str, revision: str | None) -> Path:
    # Slow to import, and not needed for local folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FatalError(
            f"{repo} is no folder here, and the hub said {type(error).__name__}",
            advice(error) or "Check its name and the network.",
        ) from error
