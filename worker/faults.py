"""What this worker cannot do though others may: its device, weights or models table are amiss."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from jobs.broker.fleet import UNFIT_SECONDS, Fleet
from jobs.errors import FatalError

LIKE_FAILURES = 32  # in a row, and a run is no longer rendered here

log = logging.getLogger(__name__)


class Unfit(FatalError):
    """A fault of this worker alone.

    model: whose requests it cannot render; whole: none of them; else those of an adapter, or of a
    run that was planned with other weights.
    """

    def __init__(self, model: str, whole: bool, error: FatalError) -> None:
        super().__init__(error.message, error.hint)
        self.model = model
        self.whole = whole


@contextmanager
def own_fault(model: str, whole: bool) -> Iterator[None]:
    """Makes a FatalError of the block one of this worker alone."""
    try:
        yield
    except Unfit:
        raise
    except FatalError as error:
        raise Unfit(model, whole, error) from error


@dataclass(frozen=True, slots=True)
class _Streak:
    """text: "" if the last request did not fail; broken_until: in monotonic seconds."""

    text: str = ""
    times: int = 0
    broken_until: float = 0.0


@dataclass
class Streaks:
    """Failures in a row that read alike, by route: the sign of a model that fails every request.

    So a million rows do not fail one by one of what is no fault of theirs.
    """

    _last: dict[str, _Streak] = field(default_factory=dict)

    def note(self, route: str, failures: Iterable[str]) -> str | None:
        """Note what became of a batch, in order: a failure's text, "" for all else.

        Returns the text once it has come LIKE_FAILURES times in a row, and for UNFIT_SECONDS each
        time that it comes again before anything else does; then it is counted anew.
        """
        last = self._last.get(route, _Streak())
        for text in failures:
            last = last if text == last.text else _Streak(text)
            last = replace(last, times=last.times + 1)
        now = time.monotonic()
        if last.times >= LIKE_FAILURES:
            last = _Streak(last.text, 0, now + UNFIT_SECONDS)
        self._last[route] = last
        return last.text if last.text and now < last.broken_until else None


@dataclass
class Fitness:
    """What this worker has given up for a while. Its parent and all others hear of it in Redis.

    Raises redis.RedisError when Redis is away.
    """

    fleet: Fleet
    worker: str
    _until: dict[str, float] = field(default_factory=dict)

    def give_up(self, fault: Unfit, part: str) -> str | None:
        """Give up a model or, of it, an adapter's route or a run (`part`).

        Returns why no living worker can do it; None if another one can.
        """
        what = fault.model if fault.whole else part
        log.error("Given up for %d s: %s: %s", UNFIT_SECONDS, what, fault)
        self._until[what] = time.monotonic() + UNFIT_SECONDS
        self.fleet.give_up(self.worker, what, str(fault))
        refusals = self.fleet.refusals(fault.model, [part])
        if refusals is None:
            return None
        refusals[self.worker] = str(fault)
        if len(set(refusals.values())) == 1:
            return str(fault)
        return "\n".join(f"{name}: {reason}" for name, reason in sorted(refusals.items()))

    def is_fit(self, model: str) -> bool:
        """Whether it is to be tried to render a model."""
        return time.monotonic() >= self._until.get(model, 0.0)

    def succeed(self, model: str) -> None:
        """It renders, so it is no longer given up."""
        self._until.pop(model, None)
