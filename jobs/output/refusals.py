"""What a fault of storage means: whether to try again, and what its user is told."""

from __future__ import annotations

import errno
import zlib
from lzma import LZMAError
from zipfile import BadZipFile

from jobs.errors import FatalError, ImagemillError, NoCredentials, TransientError, UsageError

# What decompressors raise beside an OSError; the last two: a zip of another kind, or encrypted.
DAMAGED = (EOFError, zlib.error, LZMAError, BadZipFile, NotImplementedError, RuntimeError)
_PERMANENT_ERRNOS = {
    errno.ENOSPC: ("is full", "Free some space"),
    errno.EDQUOT: ("is over its quota", "Free some space or raise the quota"),
    errno.EROFS: ("is read-only", "Choose another location, or make it writable"),
    errno.EACCES: ("refuses access", "Check the permissions or the credentials"),
    errno.EPERM: ("refuses access", "Check the permissions or the credentials"),
    errno.EEXIST: ("has a file where a folder is needed", "Choose another location"),
    errno.ENOTDIR: ("has a file where a folder is needed", "Choose another location"),
    errno.EISDIR: ("is a folder, not a file", "Name a file"),
    errno.ENAMETOOLONG: ("has too long a name", "Choose a shorter path"),
    errno.ELOOP: ("is a loop of links", "Choose another location"),
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_TORN = {"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch"}  # on its way


def classify(error: Exception, where: str) -> ImagemillError:
    """The one place that decides whether a storage fault is worth trying again."""
    if isinstance(error, ImagemillError):
        return error
    if isinstance(error, OSError) and error.errno in _PERMANENT_ERRNOS:
        state, advice = _PERMANENT_ERRNOS[error.errno]
        return FatalError(f"storage {where} {state}", f"{advice}, then run the same command again.")
    name, code = type(error).__name__, s3_code(error)
    if isinstance(error, FileNotFoundError):
        return UsageError(f"storage {where} does not exist", "Create the bucket or folder first.")
    if code in _EXPIRED:
        return FatalError(f"storage {where}: the credentials have expired ({code})", "Renew them.")
    if isinstance(error, PermissionError):
        reason = f" ({code or error})" if str(error) else ""
        return FatalError(
            f"storage {where} refuses access{reason}", "Check the permissions or the credentials."
        )
    if code and isinstance(error, OSError) and error.errno == errno.EINVAL and code not in _TORN:
        return FatalError(f"storage {where} refuses the request ({code}): {error}")
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return NoCredentials(
            f"storage {where}: no credentials: {error}",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to one of "
            "~/.aws/config, then run the same command again.",
        )
    if isinstance(error, ValueError | TypeError | ImportError):
        return FatalError(f"storage {where}: {error}")
    return TransientError(f"storage {where} failed: {name}: {error}", "Check that it is reachable.")


def s3_code(error: Exception) -> str:
    """What an S3 server called its error, which s3fs keeps as the cause; empty for other errors."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or "")
