"""What a pipeline made, as pixels of 8 bits: rounded and checked where they lie, on the device.

So a quarter of the bytes is copied from there, and nobody else converts anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.inputs.images import HALF
from worker.inputs import Prepared
from worker.render import NON_FINITE, NSFW, Flaw, Image


def as_channels_last(images: torch.Tensor | NDArray[np.float32]) -> torch.Tensor:
    """(images, height, width, 3), RGB in [0, 1], of either form that pipelines give back."""
    if isinstance(images, torch.Tensor):
        return images.permute(0, 2, 3, 1)
    return torch.from_numpy(np.asarray(images, np.float32))


def to_8_bits(images: torch.Tensor, unsafe: list[bool]) -> list[Image]:
    """Each image as (height, width, 3) bytes, or what is wrong with it.

    Rounds as diffusers does (VaeImageProcessor.numpy_to_pil), in float32. images: as from
    as_channels_last; unsafe: which of them the pipeline's safety checker has made black.
    """
    rounded = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    finite = torch.empty(len(images), dtype=torch.bool, device=images.device)
    for number, image in enumerate(images):  # one by one: the device's memory may be short
        finite[number] = image.isfinite().all()
        rounded[number] = (image.float() * 255).round()
    # Waited for here, not where it is stored: a device tells of its errors when somebody waits for
    # it, and only within the batch are they laid to its charge, halved, watched and timed.
    found: list[Any] = list(rounded.cpu().numpy())
    for number, (is_finite, is_unsafe) in enumerate(zip(finite.tolist(), unsafe, strict=True)):
        if not is_finite:
            found[number] = NON_FINITE
        elif is_unsafe:
            found[number] = NSFW
    return found


def keep_unmasked(images: list[Image], batch: list[Prepared]) -> list[Image]:
    """Images whose pixels outside of their requests' masks are those of their inputs again.

    Pipelines paint beyond a mask's edge, and all of a picture goes through their autoencoder.
    """
    for image, one in zip(images, batch, strict=True):
        if one.mask is not None and not isinstance(image, Flaw):
            unmasked = np.asarray(one.mask) < HALF
            np.copyto(image, np.asarray(one.images[0]), where=unmasked[..., None])
    return images
