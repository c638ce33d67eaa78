"""Which of a manifest's lines repeat an earlier one, by hashes of what identifies them."""

from __future__ import annotations

from itertools import pairwise
from mmap import mmap

import numpy as np
import numpy.typing as npt

RANGES = 16

Hashes = npt.NDArray[np.uint64]
Truths = npt.NDArray[np.bool_]


class Repeats:
    """A set of 64-bit hashes, in RANGES of equal width: what is merged at a time is as much less.

    8 bytes an entry where a Python set takes about 70. Two different custom_ids share a hash once
    in 10 million manifests of a million lines.
    """

    def __init__(self) -> None:
        self._ranges = [_Range() for _ in range(RANGES)]
        self._starts = np.array([(n << 64) // RANGES for n in range(1, RANGES)], np.uint64)

    def add(self, hashes: Hashes) -> Truths:
        """Add all; true where a hash was there before or earlier in `hashes`."""
        once, first = np.unique(hashes, return_index=True)
        bounds = [0, *np.searchsorted(once, self._starts).tolist(), once.size]
        known = np.ones(hashes.size, np.bool_)
        known[first] = np.concatenate([
            of.add(once[start:stop])
            for of, (start, stop) in zip(self._ranges, pairwise(bounds), strict=True)
        ])  # fmt: skip
        return known


class _Range:
    """Sorted arrays, each at least four times as long as the next: few to search, and to merge."""

    def __init__(self) -> None:
        self._sorted: list[Hashes] = []

    def add(self, hashes: Hashes) -> Truths:
        """Add all, which are sorted; true where one was there before."""
        known = np.zeros(hashes.size, np.bool_)
        for array in self._sorted:
            known |= array.take(array.searchsorted(hashes), mode="clip") == hashes
        merged = hashes.copy()
        while self._sorted and self._sorted[-1].size < 4 * merged.size:
            both = [self._sorted.pop(), merged]
            merged = np.concatenate(both, out=_room(sum(map(len, both))))
            del both
            merged.sort(kind="stable")  # merges what is sorted in parts
        if merged.size:
            self._sorted.append(merged)
        return known


def _room(size: int) -> Hashes:
    """For so many, outside the heap: so that all of it goes back to the system when it is freed."""
    return np.frombuffer(mmap(-1, 8 * size), np.uint64)
