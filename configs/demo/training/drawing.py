"""Drawings of scenes, anti-aliased by supersampling."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from configs.demo.training.scenes import PALETTE, SIDE, Item, Scene

SUPERSAMPLING = 8  # edges are drawn at 8 times the side, then averaged down
STROKE = 3  # pixels, of hollow objects


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The scene's one true picture: (SIDE, SIDE, 3), sRGB 0..255."""
    return paint(scene.background, scene.items())


def paint(background: str, items: tuple[Item, ...], hollow: bool = False) -> NDArray[np.uint8]:
    """Objects on a background, of hollow ones the outline alone: (SIDE, SIDE, 3), sRGB 0..255."""
    picture = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    picture[:] = PALETTE[background]
    for item in items:
        alpha = coverage(item.shape, item.x, item.y, item.radius, hollow)[..., None]
        picture += alpha * (np.array(PALETTE[item.colour], dtype=np.float32) - picture)
    return picture.round().astype(np.uint8)


@lru_cache(maxsize=4096)
def coverage(
    shape: str, x: float, y: float, radius: float, hollow: bool = False
) -> NDArray[np.float32]:
    """How much of each pixel a shape, or its stroke, covers: (SIDE, SIDE) in 0..1, anti-aliased."""
    canvas = Image.new("L", (SIDE * SUPERSAMPLING,) * 2)
    points = [
        ((x + radius * u) * SUPERSAMPLING, (y + radius * v) * SUPERSAMPLING)
        for u, v in outline(shape)
    ]
    fill = 0 if hollow else 255
    ImageDraw.Draw(canvas).polygon(points, fill, 255, STROKE * SUPERSAMPLING if hollow else 1)
    small = canvas.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


@lru_cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corner points around the origin, y down, within about one unit."""
    if shape == "circle":
        return tuple(polar(0.97, turn / 64) for turn in range(64))
    if shape == "square":
        return ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86))
    if shape == "triangle":
        return ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85))
    if shape == "star":
        return tuple(polar(1.1 if i % 2 == 0 else 0.46, i / 10) for i in range(10))
    if shape == "cross":
        a, b = 0.32, 1.0
        corner = ((-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a))
        return (*corner, (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a))
    if shape == "heart":  # the sextic heart curve, 16 sin^3 t and its cosine series
        turns = [2 * math.pi * i / 64 for i in range(64)]
        return tuple(
            (
                math.sin(t) ** 3,
                (-13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t))
                / 16
                - 0.14,
            )
            for t in turns
        )
    raise ValueError(f"unknown shape: {shape}")


def polar(length: float, turn: float) -> tuple[float, float]:
    """A point `length` from the origin, `turn` (0..1) clockwise from straight up."""
    return length * math.sin(2 * math.pi * turn), -length * math.cos(2 * math.pi * turn)
