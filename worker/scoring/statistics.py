"""What pixels tell by themselves: contrast, blankness, sharpness, colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from jobs.output.records import Row, Score

BLANK = 4.0  # of contrast: JPEG's noise on a plain colour has less than 1
SIDE = 256  # pixels; colours are measured on copies that are no larger than needed


class Statistics:
    """blank: whether its contrast is below BLANK; contrast: the largest standard deviation of its
    red, green and blue, 0 to 127.5; brightness: mean of its luma, 0 to 255; saturation: mean of
    HSV's, 0 to 255; colourfulness: of Hasler and Süsstrunk ("Measuring colourfulness in natural
    images", 2003), 0 to about 180; sharpness: variance of its luma's Laplacian, at full size."""

    version = "1"
    columns = ("blank", "contrast", "brightness", "saturation", "colourfulness", "sharpness")

    def score(
        self, images: Sequence[Image.Image], _: Sequence[Row]
    ) -> Mapping[str, Sequence[Score]]:
        """All columns of each."""
        found = list(map(_statistics, images))
        return {name: [one[name] for one in found] for name in self.columns}


def _statistics(image: Image.Image) -> dict[str, Score]:
    luma = image.convert("L")
    small = image.reduce(max(1, min(image.size) // SIDE))
    contrast = max(ImageStat.Stat(image).stddev)
    return {
        "blank": contrast < BLANK,
        "contrast": round(contrast, 3),
        "brightness": round(ImageStat.Stat(luma).mean[0], 3),
        "saturation": round(ImageStat.Stat(small.convert("HSV")).mean[1], 3),
        "colourfulness": round(_colourfulness(np.asarray(small, np.float32)), 3),
        "sharpness": round(_sharpness(np.asarray(luma, np.int16)), 3),
    }


def _colourfulness(rgb: NDArray[np.float32]) -> float:
    red, green, blue = np.moveaxis(rgb, -1, 0)
    opponents = red - green, (red + green) / 2 - blue
    spread = hypot(*(float(one.std()) for one in opponents))
    return spread + 0.3 * hypot(*(float(one.mean()) for one in opponents))


def _sharpness(luma: NDArray[np.int16]) -> float:
    """The Laplacian of the four neighbours, without the border; 0 where nothing is left."""
    inner = luma[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * inner).var(dtype=np.float64))
