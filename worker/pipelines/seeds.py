"""Seeds to generators of noise."""

from __future__ import annotations

from hashlib import shake_256

import numpy as np
import torch

SHORT = 2**32  # seeds below are all that the CPU's generator tells apart by itself

# Where the state of torch's CPU generator holds its first seed and the words of its MT19937
# (CPUGeneratorImplStateLegacy in ATen/CPUGeneratorImpl.cpp).
_WORDS = 624
_FIRST_SEED = slice(0, 1)
_STATE = slice(3, 3 + _WORDS)


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU, where the same seed gives the same noise for every kind of device.

    `manual_seed` keeps 32 bits of a seed. So a longer one, up to 64 bits, fills the whole state
    from its hash; a shorter one gives what it gives everywhere.
    """
    made = torch.Generator("cpu").manual_seed(seed % SHORT)
    if seed < SHORT:
        return made
    # Freshly seeded, so that its next number twists these words first.
    state = made.get_state()
    fields = state[: state.numel() // 8 * 8].numpy().view(np.uint64)
    fields[_FIRST_SEED] = seed
    words = shake_256(seed.to_bytes(8, "little")).digest(4 * _WORDS)
    fields[_STATE] = np.frombuffer(words, "<u4")
    return made.set_state(state)
