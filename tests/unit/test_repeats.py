"""Repeated lines are found among all earlier ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

import producer.planning.repeats as module
from jobs.errors import FatalError
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


def test_what_lies_in_files_is_told_as_a_set_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEWEST", 5000)
    draw = np.random.default_rng(1)
    repeats = Repeats()
    given = draw.integers(0, 2**64 - 1, (20, 2000), np.uint64, endpoint=True)
    others = draw.integers(0, 2**64 - 1, (20, 2000), np.uint64, endpoint=True)
    for new in given:
        assert not repeats.add(new).any()
    assert len(repeats._older) == 6
    for known, new in zip(given, others, strict=True):
        both = np.concatenate([new, known])
        assert repeats.add(both).tolist() == [False] * 2000 + [True] * 2000


def test_without_room_for_a_file_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "NEWEST", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FatalError, match="temporary file: No such file") as caught:
        Repeats().add(np.ones(1, np.uint64))
    assert "TMPDIR" in (caught.value.hint or "")
