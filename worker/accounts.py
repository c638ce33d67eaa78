"""What the calls of this process have used, for `imagemill usage`: runs have records instead."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from secrets import token_hex
from threading import Lock

from jobs.calls.call import Call
from jobs.errors import ImagemillError
from jobs.output.dataset import now
from jobs.output.records import RecordStatus
from jobs.output.storage import open_storage
from jobs.output.usage import CallUsage, calls_path, encode_calls
from worker.render import Rendered

WRITE_SECONDS = 60.0  # what a killed process loses, at most

log = logging.getLogger(__name__)

_Book = tuple[str, str]  # the location of a store, and a day
_Sums = dict[tuple[str, str], CallUsage]  # by team and model


@dataclass
class Accounts:
    """Sums of each day. Many threads may note.

    process: tells what it writes apart from what others do.
    """

    process: str = field(default_factory=lambda: token_hex(8))
    _books: defaultdict[_Book, _Sums] = field(default_factory=lambda: defaultdict(dict))
    _changed: set[_Book] = field(default_factory=set)
    _lock: Lock = field(default_factory=Lock)

    def note(self, call: Call, one: Rendered, status: RecordStatus, size: int) -> None:
        """A call has ended; size: bytes of its file."""
        book, key = (call.out, now()[:10]), (call.team, call.request.key.model)
        with self._lock:
            sums = self._books[book].setdefault(key, CallUsage(*key))
            sums.usage.note(status, one.seconds + one.seconds_lost, size)
            self._changed.add(book)

    def write(self) -> None:
        """Write what has changed; what storage does not take now, it gets the next time."""
        today = now()[:10]
        with self._lock:
            for book in [one for one in self._books if one[1] < today and one not in self._changed]:
                del self._books[book]
            changed, self._changed = self._changed, set()
        for book in sorted(changed):
            with self._lock:
                lines = encode_calls(self._books[book].values())
            out, day = book
            try:
                open_storage(out).write(calls_path(day, self.process), lines)
            except ImagemillError as error:
                log.warning("What calls used is not written yet: %s", error)
                with self._lock:
                    self._changed.add(book)
