"""Uploads an export to the hub of Hugging Face, as one commit of a dataset's repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import FatalError, UsageError
from producer.upkeep.export.card import CARD
from producer.upkeep.export.job import ABOUT

_PLACE = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?/?", re.ASCII
)
_NUMBER = "[0-9]" * 5
_SHARDS = ["*.parquet", "*.tar", f"*/{_NUMBER}/*"]  # of all forms


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is on the hub now. files, bytes: of the export; url: of the commit."""

    repo: str
    files: int
    bytes: int
    url: str


def push(export: str, place: str, private: bool) -> Pushed:
    """Upload the folder of a finished export, in place of another one's shards that lie there.

    Files that the hub has are not sent again.

    private: of a repository that is not there yet.

    Raises:
        UsageError: it is no export or not finished, or the place is none.
        FatalError: the hub does not take it.
    """
    found = _PLACE.fullmatch(place)
    if not found:
        raise UsageError(
            f"{place} is no dataset on the hub", "Name one: hf://datasets/ORGANISATION/NAME."
        )
    folder = Path(export)
    if not export or not (folder / ABOUT).is_file():
        raise UsageError(
            f"{export!r} is no folder of an export",
            f"Make one: imagemill export {export or 'OUT'} FOLDER --to parquet; then push FOLDER.",
        )
    if not (folder / CARD).is_file():  # it is written last
        raise UsageError(
            f"{export!r} is an export that has not finished", "Run its command again, to the end."
        )
    repo, revision = found["repo"], found["revision"]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    sizes = [path.stat().st_size for path in files]
    # Here, as it takes long to import.
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    hub = HfApi(library_name="imagemill")
    try:
        hub.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            revision=revision,
            commit_message=f"{len(sizes)} files of an imagemill export",
            ignore_patterns=[".*", "*/.*"],  # half-written ones of a command that was killed
            delete_patterns=_SHARDS,
        )
    except Exception as error:  # of the hub's library, or of its HTTP library
        raise FatalError(
            f"the hub did not take {repo}: {type(error).__name__}: {_first_line(error)}",
            f"{_hint(error)}; the same command goes on.",
        ) from error
    return Pushed(repo, len(sizes), sum(sizes), str(commit.commit_url))


def _hint(error: Exception) -> str:
    """What to look at, by what the hub has answered, if it has."""
    from huggingface_hub import get_token

    match getattr(getattr(error, "response", None), "status_code", None):
        case 401 | 403 if not get_token():
            return "Set HF_TOKEN, to a token that may write there, or log in with hf auth login"
        case 401 | 403:
            return "Check that your token, HF_TOKEN or that of hf auth login, may write there"
        case None:
            return "Try again when the hub can be reached"
    return "Check the dataset's name"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")
