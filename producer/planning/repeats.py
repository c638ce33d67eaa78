"""Which of a manifest's lines repeat an earlier one, by hashes of what identifies them."""

from __future__ import annotations

import mmap
import tempfile

import numpy as np
import numpy.typing as npt

from jobs.errors import FatalError

NEWEST = 1 << 20  # hashes that stay in memory, until as many go to a file together
_WORD_BITS = 18  # a filter has 2 ** 18 words of 64 bits: 16 bits for each of its hashes
_PIECE = NEWEST >> 4

Hashes = npt.NDArray[np.uint64]
Truths = npt.NDArray[np.bool_]


class Repeats:
    """A set of 64-bit hashes: the newest in memory; of the others two bytes each, and files.

    Two different custom_ids share a hash once in 10 million manifests of a million lines.
    """

    def __init__(self) -> None:
        self._newest = _Newest()
        self._older: list[_Older] = []

    def add(self, hashes: Hashes) -> Truths:
        """Add all; true where a hash was there before or earlier in `hashes`.

        Raises:
            FatalError: no room for a file.
        """
        once, first = np.unique(hashes, return_index=True)
        found = self._newest.has(once)
        if self._older:
            words, bits = _marks(once)
            for older in self._older:
                found |= older.has(once, words, bits)
        self._newest.add(once[~found])
        if self._newest.size >= NEWEST:
            self._older.append(_Older(self._newest.take()))
        known = np.ones(hashes.size, np.bool_)
        known[first] = found
        return known


class _Newest:
    """Sorted arrays, each at least four times as long as the next: few to search, and to merge."""

    def __init__(self) -> None:
        self._sorted: list[Hashes] = []

    @property
    def size(self) -> int:
        return sum(map(len, self._sorted))

    def has(self, hashes: Hashes) -> Truths:
        found = np.zeros(hashes.size, np.bool_)
        for array in self._sorted:
            found |= _are_in(array, hashes)
        return found

    def add(self, hashes: Hashes) -> None:
        """Add all, which are sorted and not in it."""
        while self._sorted and self._sorted[-1].size < 4 * hashes.size:
            hashes = _merged([self._sorted.pop(), hashes])
        if hashes.size:
            self._sorted.append(hashes)

    def take(self) -> Hashes:
        """All of them, sorted; none are left."""
        arrays, self._sorted = self._sorted, []
        return _merged(arrays)


class _Older:
    """A sorted array in a file, and a Bloom filter: of 300 hashes not in it, it is asked for one.

    Putze, Sanders and Singler, Cache-, Hash- and Space-Efficient Bloom Filters, 2007: all bits of a
    hash are in one word.
    """

    def __init__(self, hashes: Hashes) -> None:
        try:
            with tempfile.TemporaryFile(prefix="imagemill-") as file:
                file.write(hashes.data)
                file.flush()
                self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FatalError(
                f"planning cannot write a temporary file: {error.strerror}",
                "It keeps 8 bytes a line in TMPDIR, or in /tmp: make room, or name another folder.",
            ) from None
        self._sorted = np.frombuffer(self._file, np.uint64)
        self._filter = np.zeros(1 << _WORD_BITS, np.uint64)
        for start in range(0, hashes.size, _PIECE):
            words, bits = _marks(hashes[start : start + _PIECE])
            np.bitwise_or.at(self._filter, words, bits)

    def has(self, hashes: Hashes, words: npt.NDArray[np.intp], bits: Hashes) -> Truths:
        """Which are in it; words and bits: the marks of the hashes."""
        found: Truths = (self._filter[words] & bits) == bits
        likely = np.flatnonzero(found)
        if likely.size:
            found[likely] = _are_in(self._sorted, hashes[likely])
            self._file.madvise(mmap.MADV_DONTNEED)  # or what was read of it would be ours
        return found


def _marks(hashes: Hashes) -> tuple[npt.NDArray[np.intp], Hashes]:
    """For each hash a word of a filter, and up to four bits of that word."""
    bits = np.zeros(hashes.size, np.uint64)
    for shift in (0, 6, 12, 18):
        bits |= np.uint64(1) << (hashes >> np.uint64(shift) & np.uint64(63))
    return (hashes >> np.uint64(64 - _WORD_BITS)).astype(np.intp), bits


def _are_in(array: Hashes, hashes: Hashes) -> Truths:
    """Which of the hashes are in a sorted array of one at least."""
    found: Truths = array.take(array.searchsorted(hashes), mode="clip") == hashes
    return found


def _merged(arrays: list[Hashes]) -> Hashes:
    merged = np.concatenate(arrays)
    merged.sort(kind="stable")  # merges what is sorted in parts
    return merged
