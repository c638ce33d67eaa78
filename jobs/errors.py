"""Every error that imagemill raises on purpose.

    ImagemillError
    ├── InvalidRequest      the request's own fault: never retried, HTTP 422
    ├── ManifestRefused     a manifest with invalid lines: nothing was enqueued
    ├── UsageError          an option, a setting or a models table that cannot work
    ├── TransientError      worth trying again: a timeout, a throttled store, a lost connection
    └── FatalError          trying again cannot help until a person acts: a full disk, no weights
        └── NoCredentials   a storage that whoever runs this has not said how to enter

Every error says what failed and, in `hint`, what to do next.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import IntEnum

LONGEST_NAME = 128  # characters, of what may be like a name that somebody mistyped


def printable(text: str, most: int | None = None) -> str:
    """Somebody else's text as one harmless line: escapes stand for control characters, and what is
    beyond `most` characters is left out."""
    cut = text if most is None or len(text) <= most else f"{text[: most - 1]}…"
    return cut if cut.isprintable() else "".join(map(_visible, cut))


def resembling(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'prompt'?" for a name that is like a known one; "" if it is like none."""
    if len(name) > LONGEST_NAME:  # to compare takes long, and some names are anybody's
        return ""
    by_letters = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), by_letters, n=1)
    return f"; did you mean {by_letters[near[0]]!r}?" if near else ""


def shown(value: object) -> str:
    """A value that somebody gave, as Python writes it; of tables and lists, as they may be nested
    too deeply for that, the beginning."""
    return repr(value) if isinstance(value, str) else reprlib.repr(value)


def plain(message: str) -> str:
    """What pydantic says of a value, without the class of the error that a validator raised."""
    return message.removeprefix("Value error, ")


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


class ImagemillError(Exception):
    """Base of the tree. `message` says what and where; `hint` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InvalidRequest(ImagemillError):
    """A request that can never render. `field` names the culprit, `code` is machine-readable."""

    def __init__(self, field: str, reason: str, code: str = "invalid_request") -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[str, ...], dict[str, object]]:
        return type(self), (self.field, self.reason, self.code), self.__dict__


@dataclass(frozen=True, slots=True)
class LineError:
    """One reason to refuse one manifest line, or to look at it again. `line` counts from 1."""

    line: int
    custom_id: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field + ': ' if self.field else ''}{self.reason}"


class ManifestRefused(ImagemillError):
    """A manifest with invalid lines.

    total: how many; reasons: to refuse them, of which `errors` holds the first; rest: requests of
    the other lines; besides: why yet others could not be checked; report: where all reasons are, if
    somewhere.
    """

    def __init__(
        self,
        total: int,
        reasons: int,
        errors: list[LineError],
        rest: int,
        besides: ImagemillError | None = None,
    ) -> None:
        what = "it" if total == 1 else "them"
        others = ", or pass --skip-invalid to render the rest" if rest and not besides else ""
        more = f"\nOther lines could not be checked: {besides}" if besides else ""
        super().__init__(
            f"{total:,} invalid line{'' if total == 1 else 's'}; nothing was enqueued",
            f"Correct {what}{others}.{more}",
        )
        self.total = total
        self.reasons = reasons
        self.errors = errors
        self.report = ""


class UsageError(ImagemillError):
    """An option, a setting or a models table that cannot work as given."""


class TransientError(ImagemillError):
    """Worth trying again."""


class FatalError(ImagemillError):
    """Trying again cannot help until a person acts."""


class NoCredentials(FatalError):
    """A storage asks for credentials, and there are none: a command's mistake, no manifest's."""


# What a person got wrong who typed a command.
USAGE_ERRORS = (UsageError, ManifestRefused, InvalidRequest)


class Exit(IntEnum):
    """How processes end."""

    DONE = 0  # also what runs until it is stopped, and was
    FAILED = 1  # a request has no image, a check has found something, or the work cannot go on
    USAGE = 2  # a usage error or a refused manifest
    HOPELESS = 78  # a worker's: starting it again cannot help (EX_CONFIG of sysexits.h)
    INTERRUPTED = 130


def exit_of(error: ImagemillError) -> Exit:
    """How a command ends that an error has ended."""
    is_usage = isinstance(error, (*USAGE_ERRORS, NoCredentials))
    return Exit.USAGE if is_usage else Exit.FAILED
