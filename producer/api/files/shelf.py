"""Files of a team, in storage: files/<team>/<file id>/ with `content` and, last, `meta.json`.

Ids begin with the time, so that names in order are files in order.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Literal

from pydantic import BaseModel

from jobs.errors import InvalidRequest
from jobs.output.storage import Storage

Purpose = Literal[
    "assistants", "batch", "batch_output", "fine-tune", "vision", "user_data", "evals"
]

_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")


class OpenAIFile(BaseModel):
    """A file. Times are Unix seconds, `bytes` its size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Purpose
    status: Literal["uploaded", "processed", "error"] = "processed"


def new_id(kind: Literal["file-", "batch_"]) -> str:
    """A new id; later ones sort after earlier ones."""
    return f"{kind}{time.time_ns():016x}{secrets.token_hex(8)}"


def part_id(batch_id: str, number: int) -> str:
    """The id of a batch's output file: always the same, and as old as the batch."""
    return f"file-{batch_id.removeprefix('batch_')[:-1]}{number}"


def check_id(name: str) -> str:
    """The id itself.

    Raises:
        InvalidRequest: not_found, as it is none and so must not become a path.
    """
    if not _ID.fullmatch(name):
        raise InvalidRequest("", f"there is no {name[:64]!r}", "not_found")
    return name


def follow(ids: Iterable[str], after: str | None, newest_first: bool) -> list[str]:
    """The ids in order of their time that come after one, which may be gone by now.

    Raises:
        InvalidRequest: not_found, as `after` is no id.
    """
    ordered = sorted(ids, reverse=newest_first)
    if after is None:
        return ordered
    check_id(after)
    return [one for one in ordered if (one < after if newest_first else one > after)]


@dataclass(frozen=True)
class Shelf:
    """The files of all teams below a store. Every method blocks.

    Raises TransientError or FatalError when the storage is away.
    """

    storage: Storage

    @contextmanager
    def new(
        self,
        team: str,
        filename: str,
        purpose: Purpose,
        seconds: int | None = None,
        file_id: str | None = None,
    ) -> Iterator[tuple[OpenAIFile, IO[bytes]]]:
        """A file and where its content is written; it exists when the block ends without an error.

        seconds: until it expires; never when not given. file_id: a new one when not given.
        """
        now = int(time.time())
        file = OpenAIFile(
            id=file_id or new_id("file-"),
            bytes=0,
            created_at=now,
            expires_at=None if seconds is None else now + seconds,
            filename=filename,
            purpose=purpose,
        )
        with self.storage.writer(self.content_path(team, file.id)) as content:
            yield file, content
            file.bytes = content.tell()
        self.storage.write(self._meta(team, file.id), file.model_dump_json().encode())

    def find(self, team: str, file_id: str) -> OpenAIFile | None:
        """A team's file; None if there is none (any more)."""
        try:
            file = OpenAIFile.model_validate_json(self.storage.read(self._meta(team, file_id)))
        except FileNotFoundError:
            return None
        expired = file.expires_at is not None and file.expires_at <= time.time()
        return None if expired else file

    def get(self, team: str, file_id: str) -> OpenAIFile:
        """A team's file.

        Raises:
            InvalidRequest: not_found.
        """
        if file := self.find(team, check_id(file_id)):
            return file
        raise InvalidRequest("", f"there is no file {file_id!r}", "not_found")

    def read(self, team: str, file_id: str, max_bytes: int) -> bytes:
        """A file's content.

        Raises:
            InvalidRequest: not_found or input_too_large.
        """
        if self.get(team, file_id).bytes > max_bytes:
            raise InvalidRequest("file_id", f"has more than {max_bytes} bytes", "input_too_large")
        return self.storage.read(self.content_path(team, file_id))

    def list(self, team: str, after: str | None, newest_first: bool) -> Iterator[OpenAIFile]:
        """A team's files in order of their time, each read when its turn comes.

        after: the id that they follow (see `follow`).
        """
        for file_id in follow(self.storage.list(f"files/{team}"), after, newest_first):
            if file := self.find(team, file_id):  # else expired, or deleted this very moment
                yield file

    def delete(self, team: str, file_id: str) -> None:
        """Raises InvalidRequest, code not_found, if there is no such file."""
        self.get(team, file_id)
        self.storage.remove(self._meta(team, file_id))
        self.storage.remove(f"files/{team}/{file_id}")

    @staticmethod
    def content_path(team: str, file_id: str) -> str:
        """Where a file's content lies below the store."""
        return f"files/{team}/{file_id}/content"

    @staticmethod
    def _meta(team: str, file_id: str) -> str:
        return f"files/{team}/{file_id}/meta.json"
