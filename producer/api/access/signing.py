"""URLs that open one stored file for a while: an HMAC over its path and expiry."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from jobs.errors import InvalidRequest, UsageError

URL_SECONDS = 3600
SECRET_BYTES = 32


@dataclass(frozen=True)
class Signer:
    """Signs and checks paths below the facade's store."""

    secret: bytes = field(repr=False)

    def query(self, path: str, seconds: int) -> str:
        """Path and query of a URL that is good for so many seconds."""
        expires = int(time.time()) + seconds
        return f"{quote(path)}?expires={expires}&signature={self._sign(path, expires)}"

    def check(self, path: str, expires: int, signature: str) -> None:
        """Raises InvalidRequest, code bad_signature: the URL was altered or has expired."""
        signed = hmac.compare_digest(self._sign(path, expires).encode(), signature.encode())
        if not signed or expires < time.time():
            raise InvalidRequest("", "this URL was altered or has expired", "bad_signature")

    def _sign(self, path: str, expires: int) -> str:
        return hmac.digest(self.secret, f"{expires}\n{path}".encode(), "sha256").hex()


def read_signer(file: Path) -> Signer:
    """The signer of a secret file, which is made with mode 0600 when it is absent.

    Raises:
        UsageError: the file cannot be made or holds no secret.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(secrets.token_bytes(SECRET_BYTES))
            # A link is made whole or not at all: of two facades that start at once, one wins.
            with suppress(FileExistsError):
                os.link(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        secret = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"signing secret {file}: {error.strerror}", "Set IMAGEMILL_SIGNING_FILE."
        ) from error
    if len(secret) < SECRET_BYTES:
        raise UsageError(f"signing secret {file} is too short", "Remove it: a new one is made.")
    return Signer(secret)
