"""How many slots the pipeline calls get that render the rest of a group of requests.

A call costs by its slots, filled or not, and something for itself. Sixteen requests that share
nothing but a pipeline are sixteen calls of one slot, and not of sixteen of which fifteen are waste.
"""

from __future__ import annotations

from functools import cache

CALL = 0.25  # what a call costs beside its slots, in calls of all of them: the demo model's


def cost(slots: int, width: int) -> float:
    """Device time of a call, in that of one slot. width: the most slots that the model takes."""
    return slots + CALL * width


@cache
def fit(rest: int, width: int) -> tuple[int, ...]:
    """The slots of calls that together take `rest` requests in the least device time.

    Powers of two, falling; all are filled but the last. Both are positive, and rest < width.
    """
    whole = 1 << (rest.bit_length() - 1)
    if whole == rest:
        return (whole,)
    padded, split = (2 * whole,), (whole, *fit(rest - whole, width))
    return min(padded, split, key=lambda calls: (sum(cost(n, width) for n in calls), len(calls)))
