"""How fast a run was when: images a second over time, by when its chunks were stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.output import layout
from jobs.output.plan import Plan

LEAST_CHUNKS = 6  # of fewer there is nothing to see
MOST_STEPS = 72
WIDTH, HEIGHT = 720, 64  # of a drawing, in its own units


@dataclass(frozen=True, slots=True)
class Speed:
    """Images a second in spans of `seconds` each, from `began` (Unix seconds) on."""

    began: float
    seconds: float
    rates: tuple[float, ...]

    @property
    def ended(self) -> float:
        """When the last span ends, in Unix seconds."""
        return self.began + self.seconds * len(self.rates)

    @property
    def most(self) -> float:
        """The highest rate."""
        return max(self.rates)

    @property
    def mean(self) -> float:
        """Over all spans."""
        return sum(self.rates) / len(self.rates)

    @property
    def path(self) -> str:
        """An SVG path around the area below the rates, in WIDTH × HEIGHT."""
        step = WIDTH / len(self.rates)
        parts = [f"M0 {HEIGHT}"]
        for number, rate in enumerate(self.rates):
            parts.append(f"V{HEIGHT * (1 - rate / self.most):.1f}H{step * (number + 1):.1f}")
        return "".join([*parts, f"V{HEIGHT}Z"])


def speed_of(plan: Plan, times: Mapping[str, float]) -> Speed | None:
    """The speed of a run whose parts were stored at these times; None if they are too few to tell.

    The first chunk is not counted: when it was begun is not known.
    """
    stored: list[tuple[float, int]] = []
    for name, at in times.items():
        place = layout.chunk_of_done_part(name)
        if place and at and place[0] < len(plan.shards):
            chunks = plan.shards[place[0]].chunks
            if place[1] < len(chunks):
                chunk = chunks[place[1]]
                stored.append((at, chunk.stop - chunk.start))
    stored.sort()
    span = stored[-1][0] - stored[0][0] if stored else 0.0
    if len(stored) < LEAST_CHUNKS or span < 1:
        return None
    began, steps = stored[0][0], min(MOST_STEPS, len(stored) // 2)
    counts = [0] * steps
    for at, images in stored[1:]:
        counts[min(steps - 1, int((at - began) / span * steps))] += images
    seconds = span / steps
    return Speed(began, seconds, tuple(count / seconds for count in counts))
