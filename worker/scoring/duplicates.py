"""Images that are the same, or nearly so: by their pixels, and by a perceptual hash.

PDQ (Facebook, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019)
has 256 bits, which stay nearly the same when an image is scaled, compressed or brightened.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from jobs.output.records import Row, Score, Scores

SIDE = 512  # pixels; PDQ's own advice for what is larger
LEAST_QUALITY = 50  # of 100: below it an image shows too little to have a hash, says PDQ
WORDS = 4  # of 64 bits, a hash
BANDS = 16  # of 16 bits
DISTANCE = BANDS - 1  # bits: so of two hashes no farther apart one band is the same
PAIRS = 1 << 20  # that are compared at a time

Hashes = NDArray[np.uint64]  # (images, WORDS)


class Duplicates:
    """pixel_hash: 128 bits of BLAKE2b over size and pixels; pdq: the perceptual hash, "" for an
    image that shows too little. duplicate_of, similar_to: file_name of the first image of the
    dataset with the same pixels, or with a hash at most DISTANCE bits away; "" if none is before
    it."""

    version = "1"
    columns = ("pixel_hash", "pdq")
    relations = ("duplicate_of", "similar_to")

    def score(self, images: Sequence[Image], _: Sequence[Row]) -> Mapping[str, Sequence[Score]]:
        """Both hashes of each, hexadecimal."""
        return {
            "pixel_hash": [_pixel_hash(image) for image in images],
            "pdq": [_perceptual_hash(image) for image in images],
        }

    def relate(self, images: Iterable[tuple[Row, Scores]]) -> Iterator[Scores]:
        """The first image that each repeats."""
        names: list[str] = []
        pixels, hashes, hashed = array("Q"), bytearray(), array("q")
        for at, (row, scores) in enumerate(images):
            names.append(row["file_name"])
            pixels.append(int(str(scores["pixel_hash"])[:16], 16))
            if pdq := str(scores["pdq"]):
                hashes += bytes.fromhex(pdq)
                hashed.append(at)
        same = first_equal(np.frombuffer(pixels, np.uint64))
        places = np.frombuffer(hashed, np.int64)
        near = np.full(len(names), -1)
        found = first_near(np.frombuffer(hashes, np.uint64).reshape(-1, WORDS))
        near[places] = np.where(found < 0, -1, places[found])
        for duplicate, similar in zip(same.tolist(), near.tolist(), strict=True):
            yield {
                "duplicate_of": "" if duplicate < 0 else names[duplicate],
                "similar_to": "" if similar < 0 else names[similar],
            }


def first_equal(values: Hashes) -> NDArray[np.int64]:
    """For each value the index of its first equal before it; -1 if there is none."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True, axis=0)
    found = first[which.reshape(-1)]
    return np.where(found < np.arange(len(values)), found, -1)


def first_near(hashes: Hashes) -> NDArray[np.int64]:
    """For each hash the index of the first one before it at most DISTANCE bits away; -1 if none.

    Only pairs that have a band in common are compared.
    """
    unique, first, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    nearest = first.copy()
    bands = unique.view(np.uint16).reshape(-1, BANDS)
    for band in range(BANDS):
        keys = bands[:, band]
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=1 << 16)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        for ours, theirs in _pairs(starts[keys], counts[keys], order):
            near = _distance(unique[ours], unique[theirs]) <= DISTANCE
            np.minimum.at(nearest, ours[near], first[theirs[near]])
    found = nearest[which.reshape(-1)]
    return np.where(found < np.arange(len(hashes)), found, -1)


def _pairs(
    starts: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Row i with each of order[starts[i]:starts[i] + counts[i]], about PAIRS of them at a time."""
    ends = np.cumsum(counts)
    at = 0
    while at < len(starts):
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + PAIRS, "right")))
        many = counts[at:stop]
        ours = np.repeat(np.arange(at, stop), many)
        within = np.arange(len(ours)) - np.repeat(ends[at:stop] - many - before, many)
        yield ours, order[np.repeat(starts[at:stop], many) + within]
        at = stop


def _distance(ours: Hashes, theirs: Hashes) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = np.bitwise_count(ours ^ theirs).sum(axis=1, dtype=np.uint16)
    return bits


def _pixel_hash(image: Image) -> str:
    size = f"{image.width} x {image.height}"
    return blake2b(image.tobytes(), digest_size=16, key=size.encode()).hexdigest()


def _perceptual_hash(image: Image) -> str:
    import pdqhash

    small = image.reduce(max(1, min(image.size) // SIDE))
    bits, quality = pdqhash.compute(np.asarray(small))
    return "" if quality < LEAST_QUALITY else np.packbits(bits.astype(np.uint8)).tobytes().hex()
