"""Schedules and inboxes: what is due, what was, what happens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from producer.report.console import new_table, say, show

if TYPE_CHECKING:
    from producer.schedules.history import Entry, Overview, Upcoming
    from producer.schedules.news import News

log = logging.getLogger(__name__)


def show_schedules(schedules: Sequence[Overview]) -> None:
    """A table of schedules."""
    table = new_table("schedule", "cron", "time zone", "next", "last", "state")
    for s in schedules:
        last = f"{_when(s.last.nominal)} {s.last.state}" if s.last else ""
        state = "paused" if s.paused else "active"
        table.add_row(s.name, s.cron, s.timezone, _when(s.next), last, state)
    show(table)
    for s in schedules:
        if s.paused:
            show(f"{s.name} is paused: {s.paused}. imagemill schedule resume {s.name} goes on.")


def show_upcoming(times: Sequence[Upcoming]) -> None:
    """A table of nominal times to come."""
    table = new_table("schedule", "nominal time", "manifest", "output")
    for one in times:
        table.add_row(one.name, _when(one.nominal), Text(one.manifest), Text(one.out))
    show(table)


def show_history(entries: Sequence[Entry]) -> None:
    """A table of what became of a schedule's nominal times."""
    if not entries:
        say("Nothing was due so far.")
        return
    table = new_table("nominal time", "state", "run", "images", "without", "output or reason")
    for e in entries:
        state = f"{e.state} (run-now)" if e.manual else e.state
        counts = [f"{e.done:,}", f"{e.without_image:,}"] if e.run_id else ["", ""]
        table.add_row(_when(e.nominal), state, e.run_id, *counts, Text(e.out or e.reason))
    show(table)


def say_news(news: News) -> None:
    """Something that happened, for people on stderr."""
    say(str(news))


def log_news(news: News) -> None:
    """The same as a line of the log, with its fields where that is JSON."""
    fields = {name: value for name, value in asdict(news).items() if value and name != "text"}
    log.info("%s", news, extra=fields)


def _when(moment: str) -> str:
    """An ISO time for people; seconds only if there are some."""
    if not moment:
        return "never"
    time = datetime.fromisoformat(moment)
    return f"{time:%Y-%m-%d %H:%M:%S%z}" if time.second else f"{time:%Y-%m-%d %H:%M%z}"
