"""The hub of Hugging Face, and its cache on this machine: which commit a repository is at.

Its library is slow to import and not needed for local folders, so each function imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from jobs.errors import FatalError
from jobs.ids import COMMIT


class NoSuchWeights(FatalError):
    """Neither this machine nor the hub has a repository of that name for us; asking again is no
    use."""


def is_commit(revision: str | None) -> TypeGuard[str]:
    """Whether a revision names one commit, and no tag or branch that may move."""
    return revision is not None and bool(COMMIT.fullmatch(revision))


def commit_of(repo: str, revision: str | None) -> str:
    """The commit that this machine renders with: its cache's own, else the hub's newest.

    revision: a commit, tag or branch; None is the repository's main branch.

    Raises: as newest_commit.
    """
    if is_commit(revision):
        return revision
    return cached_commit(repo, revision) or newest_commit(repo, revision)


def newest_commit(repo: str, revision: str | None) -> str:
    """What the hub says that a branch or tag is now.

    Raises:
        FatalError: the hub does not answer; where it is sure, NoSuchWeights.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if is_commit(revision):
        return revision
    final = (RepositoryNotFoundError, OfflineModeIsEnabled)
    try:
        return str(HfApi().model_info(repo, revision=revision, timeout=10).sha)
    except HFValidationError as error:
        raise NoSuchWeights(
            f"{repo!r} is not on this machine, and no name that a repository can have",
            "Name what is there, or a repository: OWNER/NAME.",
        ) from error
    except Exception as error:  # of the hub, of its HTTP library, or that this is no repository
        kind = NoSuchWeights if isinstance(error, final) else FatalError
        raise kind(
            f"model {repo} is not on this machine, and the hub said {type(error).__name__}",
            advice(error) or "Check the network, or name a local folder in models.toml.",
        ) from error


def remember(repo: str, revision: str | None, commit: str) -> None:
    """Have this machine stay at a commit of a branch or tag, also offline; the last call counts."""
    if is_commit(revision):
        return
    ref = _cache(repo) / "refs" / (revision or "main")
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit, "utf-8")


def remember_first(repo: str, revision: str | None, commit: str) -> None:
    """Have this machine stay at a commit, unless it stays at another one."""
    if not cached_commit(repo, revision):
        remember(repo, revision, commit)


def advice(error: BaseException | None) -> str | None:
    """What to do about an error that the hub's library is at the root of; None if it is not."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    while error is not None:
        if isinstance(error, GatedRepoError | RepositoryNotFoundError):
            if get_token() is None:
                return (
                    "Check its name. If it is gated or private: ask for access on its page, then "
                    "set HF_TOKEN, which is missing, to a token that may read it."
                )
            return "Check its name, and on its page whether your HF_TOKEN may read it."
        if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                "Download it first, where there is a network: imagemill models fetch NAME, or what "
                "a run was planned with: imagemill models fetch --for OUT."
            )
        error = error.__cause__ or error.__context__
    return None


def cached_commit(repo: str, revision: str | None) -> str | None:
    """The commit that the hub's cache here has of a branch or tag.

    Not asked of huggingface_hub, which wants every file that the repository lists: diffusers reads
    and fetches only some of them.
    """
    folder = _cache(repo)
    try:
        commit = (folder / "refs" / (revision or "main")).read_text("utf-8").strip()
    except OSError:
        return None
    return commit if (folder / "snapshots" / commit).is_dir() else None


def fetch_small(repo: str, revision: str | None, files: Sequence[str]) -> Path:
    """A folder with those of some small files that a repository has at a commit, tag or branch.

    Raises: FatalError: the hub does not have it, or not for us; or it does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FatalError(
            f"{repo} is no folder here, and the hub said {type(error).__name__}",
            advice(error) or "Check its name and the network.",
        ) from error


def snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder that the hub's cache here has of a commit, branch or tag; its name is the commit.

    Not all files of the repository need to be in it.
    """
    commit = revision if is_commit(revision) else cached_commit(repo, revision)
    folder = _cache(repo) / "snapshots" / (commit or "none")
    return folder if folder.is_dir() else None


def _cache(repo: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
