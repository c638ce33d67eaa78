"""Judging a picture: does it show the scene that it should?

Strict, and by measurement only. Colours must lie within 60 RGB units of the palette entry, which
must also be the nearest; positions within 5 pixels; areas within a factor of 1.38, about halfway
to the next size; outlines must overlap the true one with an IoU of at least 0.70 and overlap no
other shape's better.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from configs.demo.training.drawing import coverage
from configs.demo.training.scenes import PALETTE, SHAPES, SIDE, Item, Scene

COLOUR_TOLERANCE = 60.0  # Euclidean, in RGB units 0..255
CONTRAST = 45.0  # RGB units from the background that make a pixel part of an object
LEAST_AREA = 12  # pixels
POSITION_TOLERANCE = 5.0  # pixels between centres of mass
AREA_FACTOR = 1.38
LEAST_IOU = 0.70

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Verdict:
    """What is right about a picture; of several objects, what is right about all of them."""

    background: bool
    colour: bool
    shape: bool
    position: bool
    size: bool

    @property
    def all(self) -> bool:
        return all(asdict(self).values())


def judge(picture: Pixels, scene: Scene) -> Verdict:
    """Compare a picture, (SIDE, SIDE, 3) sRGB, with the scene that it should show.

    Each object is looked for among the pixels that are nearer to its centre than to any other's.
    """
    pixels = picture.astype(np.float32)
    ys, xs = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    items = scene.items()
    distances = np.stack([np.hypot(xs - item.x, ys - item.y) for item in items])
    around = (distances > np.array([item.radius + 4 for item in items])[:, None, None]).all(axis=0)
    backdrop: NDArray[np.float32] = np.median(pixels[around], axis=0)
    nearest = distances.argmin(axis=0)
    found = [judge_item(pixels, nearest == i, backdrop, item) for i, item in enumerate(items)]
    colour, shape, position, size = (all(column) for column in zip(*found, strict=True))
    return Verdict(is_colour(backdrop, scene.background), colour, shape, position, size)


def judge_item(
    pixels: NDArray[np.float32], cell: Mask, backdrop: NDArray[np.float32], item: Item
) -> tuple[bool, bool, bool, bool]:
    """Whether colour, shape, position and size of the object in a cell are right."""
    contrast = np.linalg.norm(pixels - backdrop, axis=-1)
    rough = cell & (contrast > CONTRAST)
    if rough.sum() < LEAST_AREA:
        return False, False, False, False
    core = eroded(rough)
    paint = np.median(pixels[core if core.any() else rough], axis=0)
    # half way to the paint is the true edge; specks of any third colour count against the outline
    mask = cell & (contrast > np.linalg.norm(paint - backdrop) / 2)
    x, y = centre(mask)
    fits = {}
    for shape in SHAPES:  # each drawn at the place where the object is, not where it should be
        own_x, own_y = centre(coverage(shape, 32.0, 32.0, item.radius) > 0.5)
        at = round(2 * (x - own_x + 32)) / 2, round(2 * (y - own_y + 32)) / 2
        ideal = coverage(shape, *at, item.radius) > 0.5
        fits[shape] = float((mask & ideal).sum() / (mask | ideal).sum())
    expected = coverage(item.shape, item.x, item.y, item.radius) > 0.5
    expected_x, expected_y = centre(expected)
    area = float(mask.sum() / expected.sum())
    return (
        is_colour(paint, item.colour),
        fits[item.shape] >= LEAST_IOU and fits[item.shape] == max(fits.values()),
        bool(np.hypot(x - expected_x, y - expected_y) <= POSITION_TOLERANCE),
        1 / AREA_FACTOR <= area <= AREA_FACTOR,
    )


def is_colour(measured: NDArray[np.float32], name: str) -> bool:
    """Whether an RGB value is the named palette colour: near it, and nearer than to any other."""
    away = {n: float(np.linalg.norm(measured - np.array(rgb))) for n, rgb in PALETTE.items()}
    return away[name] <= COLOUR_TOLERANCE and away[name] == min(away.values())


def centre(mask: Mask) -> tuple[float, float]:
    """Centre of mass in pixels, x then y."""
    ys, xs = np.nonzero(mask)
    return float(xs.mean()), float(ys.mean())


def eroded(mask: Mask) -> Mask:
    """The pixels whose four neighbours all belong to the mask too."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1]
    inner[1:-1, 1:-1] &= mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner
