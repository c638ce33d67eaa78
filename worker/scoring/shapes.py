"""Judges pictures of the demo model by measurement: do they show the scene of their prompt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
from PIL.Image import Image

from configs.demo.training.judge import judge
from configs.demo.training.scenes import SIDE, every_scene
from jobs.output.records import Row, Score


class Shapes:
    """shapes: how much is right of background, colour, shape, position and size, 0 to 1;
    shapes_wrong: the rest, "colour, size". Neither for what is not 64 x 64 or whose prompt names no
    scene of the demo model's."""

    version = "1"
    columns = ("shapes", "shapes_wrong")

    def __init__(self) -> None:
        self._scenes = {caption: scene for scene in every_scene() for caption in scene.captions()}

    def score(
        self, images: Sequence[Image], rows: Sequence[Row]
    ) -> Mapping[str, Sequence[Score | None]]:
        """Both columns of each."""
        found = [self._judge(image, row) for image, row in zip(images, rows, strict=True)]
        return {name: [one.get(name) for one in found] for name in self.columns}

    def _judge(self, image: Image, row: Row) -> dict[str, Score]:
        scene = self._scenes.get(row["prompt"])
        if scene is None or image.size != (SIDE, SIDE):
            return {}
        verdict = asdict(judge(np.asarray(image), scene))
        wrong = [name for name, right in verdict.items() if not right]
        return {"shapes": 1 - len(wrong) / len(verdict), "shapes_wrong": ", ".join(wrong)}
