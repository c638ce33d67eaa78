"""Keys of the facade: a token stands for one or several teams. Only hashes are kept."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import orjson
from pydantic import SecretStr, TypeAdapter, ValidationError

from jobs.errors import UsageError
from jobs.teams import OPEN_TEAM, Priority, check_team


@dataclass(frozen=True, slots=True)
class Key:
    """A token's hash (SHA-256, hexadecimal) and its teams; the first is the usual one.

    created_at: Unix seconds; 0 for keys of the environment. priority: the highest of its runs.
    """

    id: str
    teams: tuple[str, ...]
    digest: str
    created_at: int = 0
    priority: Priority = "normal"


_KEYS = TypeAdapter(list[Key])


@dataclass
class KeyRing:
    """All keys of a deployment: those of IMAGEMILL_API_KEYS, and the keys file as it is now.

    guarded: there was a key once, so that nobody may come in without one, even when the last one
    is revoked.
    """

    fixed: list[Key]
    file: Path
    guarded: bool = False
    _stamp: tuple[int, int] | None = None
    _stored: list[Key] = field(default_factory=list)

    def all(self) -> list[Key]:
        """Every key; the file is read again when it has changed.

        Raises:
            UsageError: it is no keys file.
        """
        try:
            stat = self.file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                self._stored, self._stamp = read_keys(self.file), stamp
        except FileNotFoundError:
            self._stored, self._stamp = [], None
        keys = self.fixed + self._stored
        self.guarded = self.guarded or bool(keys)
        return keys

    def find(self, token: str) -> Key | None:
        """The key of a token. Takes the same time whichever it is."""
        digest = _digest(token)
        found = None
        for key in self.all():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def make_ring(spec: SecretStr | None, file: Path) -> KeyRing:
    """Keys of a setting "TOKEN, TOKEN@team+team" and of a file.

    Raises:
        UsageError: a team's name is not plain, or the file is no keys file.
    """
    entries = [e.strip() for e in spec.get_secret_value().split(",")] if spec else []
    fixed = []
    for number, entry in enumerate(filter(None, entries), 1):
        token, _, teams = entry.partition("@")
        names = tuple(map(check_team, teams.split("+") if teams else [OPEN_TEAM]))
        fixed.append(Key(f"environment-{number}", names, _digest(token)))
    ring = KeyRing(fixed, file)
    ring.all()
    return ring


def read_keys(file: Path) -> list[Key]:
    """The keys of a file; none if there is no file.

    Raises:
        UsageError: it is no keys file.
    """
    try:
        return _KEYS.validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"keys file {file} cannot be read: {type(error).__name__}",
            "Correct or remove it, then create keys: imagemill keys create.",
        ) from error


def create_key(file: Path, teams: list[str], priority: Priority = "normal") -> tuple[Key, str]:
    """Add a key for these teams; returns it with its token, which is kept nowhere.

    Raises:
        UsageError: a team's name is not plain.
    """
    token = f"im-{secrets.token_urlsafe(32)}"
    names = tuple(map(check_team, teams))
    key = Key(secrets.token_hex(4), names, _digest(token), int(time.time()), priority)
    _write(file, [*read_keys(file), key])
    return key, token


def revoke_key(file: Path, key_id: str) -> None:
    """Remove a key; running facades notice.

    Raises:
        UsageError: there is no such key.
    """
    keys = read_keys(file)
    if not any(key.id == key_id for key in keys):
        raise UsageError(f"there is no key {key_id!r} in {file}", "imagemill keys list shows all.")
    _write(file, [key for key in keys if key.id != key_id])


def _digest(token: str) -> str:
    # Tokens are random and long, so a slow password hash would gain nothing.
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _write(file: Path, keys: list[Key]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(orjson.dumps(keys, option=orjson.OPT_INDENT_2))
    os.replace(temporary, file)
