"""Pixels of 8 bits, as diffusers itself rounds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from worker.pipelines.pixels import as_channels_last, to_8_bits
from worker.render import NON_FINITE, NSFW


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_rounded_as_diffusers_does(dtype: torch.dtype) -> None:
    decoded = (torch.rand(3, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 3 - 1.5).to(
        dtype
    )
    halves = torch.arange(0, 256).repeat(3)[None, :, None].reshape(1, 3, 16, 16) / 255 * 2 - 1
    decoded[0, :, :16, :16] = halves[0].to(dtype)
    processor = VaeImageProcessor()
    expected = processor.postprocess(decoded, output_type="pil")
    for form in ("pt", "np"):
        made = to_8_bits(
            as_channels_last(processor.postprocess(decoded, output_type=form)), [False] * 3
        )
        for image, other in zip(made, expected, strict=True):
            assert isinstance(image, np.ndarray)
            assert image.flags.c_contiguous  # the encoder takes it as it is
            np.testing.assert_array_equal(image, np.asarray(other))


def test_what_is_no_number_or_unsafe_is_no_image() -> None:
    images = torch.zeros(4, 8, 8, 3)
    images[1, 2, 3, 0] = torch.nan
    images[2, 0, 0, 0] = torch.inf
    good, *flaws = to_8_bits(images, [False, False, True, True])
    assert isinstance(good, np.ndarray)
    assert flaws == [NON_FINITE, NON_FINITE, NSFW]
