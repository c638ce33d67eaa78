"""The templates, and how numbers and places are written in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jinja2 import Environment, PackageLoader, StrictUndefined

from jobs.ids import STORED_INPUT


def make_environment(package: str) -> Environment:
    """The templates in a package's folder of that name; what they are given is escaped."""
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count, "rate": rate, "duration": duration, "percent": percent,
        "moment": moment,
    }  # fmt: skip
    environment.tests["stored"] = lambda reference: bool(STORED_INPUT.fullmatch(reference))
    return environment


def count(number: int) -> str:
    """1,234,567."""
    return f"{number:,}"


def rate(number: float) -> str:
    """Three digits: 0.12, 4.56, 12.3, 1,234."""
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:,.{digits}f}"


def percent(part: float) -> str:
    """A share, rounded down: 100 % is all."""
    return f"{int(100 * part)} %"


def moment(seconds: float) -> str:
    """A point in time, of Unix seconds: 2026-01-31 23:59 UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """The two largest units: 2 d 3 h, 5 min 10 s."""
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    units = [(whole.days, "d"), (hours, "h"), (rest // 60, "min"), (rest % 60, "s")]
    while len(units) > 1 and not units[0][0]:
        units.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in units[:2])
