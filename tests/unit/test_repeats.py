"""Repeated lines are found among all earlier ones."""

from __future__ import annotations

import numpy as np
import pytest

from producer.planning.repeats import Repeats


@pytest.mark.parametrize("most", [40, 2**64 - 1])
def test_what_was_there_before_is_told_as_a_set_tells_it(most: int) -> None:
    draw = np.random.default_rng(0)
    repeats, known = Repeats(), set[int]()
    for size in (0, 1, 7, 300, 0, 4096, 50, 4096):
        hashes = draw.integers(0, most, size, np.uint64, endpoint=True)
        earlier = sorted(known)[: size // 3]
        hashes[: len(earlier)] = earlier
        hashes[size // 2 :] = hashes[: size - size // 2]
        expected = list[bool]()
        for one in hashes.tolist():
            expected.append(one in known)
            known.add(one)
        assert repeats.add(hashes).tolist() == expected
