"""What the device does with its time: how much it renders, and how much of that for nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.broker.progress import Effort
from worker.render import Rendered


@dataclass
class Meter:
    """The pipeline calls of one chunk.

    since: when the device ended the chunk before, in monotonic seconds, if that was of the same
    run; else waiting begins with the first call.
    """

    since: float | None = None
    images: int = 0
    _calls: dict[float, tuple[float, int]] = field(default_factory=dict)

    def note(self, batch: Sequence[Rendered]) -> None:
        """Count a rendered batch."""
        for one in batch:
            if one.together:
                seconds = (one.seconds + one.seconds_lost) * one.together
                self._calls[one.started] = (seconds, one.stack.batch_width)
                self.images += one.status == "done"

    def effort(self) -> Effort:
        """What it came to until now."""
        seconds = sum(spent for spent, _ in self._calls.values())
        since = self.since if self.since is not None else min(self._calls, default=0.0)
        span = time.monotonic() - since if self._calls else 0.0
        return Effort(seconds, span, sum(slots for _, slots in self._calls.values()), self.images)


@dataclass
class Clock:
    """When the device ended its last chunk, and of which run. The device's thread alone uses it."""

    run: tuple[str, int] | None = None
    ended: float = 0.0

    def start(self, run_id: str, epoch: int) -> Meter:
        """A meter for a chunk that begins."""
        return Meter(self.ended if self.run == (run_id, epoch) else None)

    def stop(self, run_id: str, epoch: int) -> None:
        """A chunk has ended."""
        self.run, self.ended = (run_id, epoch), time.monotonic()
