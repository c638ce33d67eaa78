"""URIs with placeholders: {name}, {date}, {time}, {nominal} and {nominal:%Y/%m}.

They stand for the name of a schedule (or of a manifest in an inbox) and for a moment, as the
schedule's time zone writes it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_PLACEHOLDER = re.compile(r"\{([^{}:]*)(?::([^{}]*))?\}")
KNOWN = ("name", "date", "time", "nominal")


def key(moment: datetime) -> str:
    """A moment in UTC, to the second: 20261126T030000Z. Keys sort as their moments do."""
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def moment_of(key: str) -> datetime:
    """The moment of a key, in UTC. Raises ValueError if it is none."""
    return datetime.strptime(key, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: it names an unknown placeholder, or a brace has no other.
    """
    for name, form in _PLACEHOLDER.findall(template):
        if name not in KNOWN:
            raise ValueError(f"unknown placeholder {{{name}}}; known: {', '.join(KNOWN)}")
        if form and name != "nominal":
            raise ValueError(f"{{{name}}} takes no format; write {{nominal:{form}}}")
    if re.search(r"[{}]", _PLACEHOLDER.sub("", template)):
        raise ValueError("a brace has no other")
    return template


def fill(template: str, name: str, moment: datetime) -> str:
    """The URI of a name at a moment, which has a time zone."""

    def value(match: re.Match[str]) -> str:
        match match.groups():
            case ("name", _):
                return name
            case ("date", _):
                return f"{moment:%Y-%m-%d}"
            case ("time", _):
                return _time(moment)
            case (_, str(form)) if form:
                return moment.strftime(form)
        return key(moment)

    return _PLACEHOLDER.sub(value, template)


def _time(moment: datetime) -> str:
    """0300, with seconds if there are some: 030015. Of an hour that comes twice, the second time
    has a B as in railway timetables: 0230B."""
    text = f"{moment:%H%M%S}" if moment.second else f"{moment:%H%M}"
    local = moment.replace(tzinfo=None)
    first, second = (local.replace(tzinfo=moment.tzinfo, fold=fold) for fold in (0, 1))
    repeated = moment.fold and first.utcoffset() != second.utcoffset()
    return f"{text}B" if repeated else text
