"""What this worker cannot do though others may: its device, weights or models table are amiss."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs.broker.fleet import UNFIT_SECONDS, Fleet
from jobs.errors import FatalError

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
