"""What happens, told to people and programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened. what: one word; text: the rest, for people.

    subject: a schedule, a manifest of an inbox or the file of schedules; nominal: the nominal time
    in the schedule's time zone, ISO 8601, if it is about one.
    """

    subject: str
    what: str
    text: str = ""
    nominal: str = ""
    run_id: str = ""
    out: str = ""

    def __str__(self) -> str:
        words = [self.subject, self.nominal]
        said = [self.what, f"run {self.run_id}" if self.run_id else "", self.out]
        line = f"{' '.join(filter(None, words))}: {', '.join(filter(None, said))}"
        return f"{line}: {self.text}" if self.text else line
