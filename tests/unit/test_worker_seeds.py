"""Seeds of 64 bits are 64 bits of noise."""

from __future__ import annotations

import pytest
import torch

from jobs.ids import seed_deriver
from jobs.models.families import GENERIC
from tests.samples import KEY, make_request
from worker.inputs import Prepared
from worker.pipelines.arguments import arguments
from worker.pipelines.seeds import generator

LONG = [2**32, 2**32 + 1, 2**53 - 1, 2**63, 2**64 - 1]


def noise(seed: int, count: int = 4) -> bytes:
    return torch.randn(count, generator=generator(seed)).numpy().tobytes()


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_short_seeds_give_what_they_give_everywhere(seed: int) -> None:
    expected = torch.randn(64, generator=torch.Generator("cpu").manual_seed(seed))
    assert noise(seed, 64) == expected.numpy().tobytes()


def test_no_two_seeds_share_their_noise() -> None:
    seeds = {*LONG, *(seed % 2**32 for seed in LONG), *(seed ^ 1 for seed in LONG)}
    assert len({noise(seed) for seed in seeds}) == len(seeds)
    derive = seed_deriver(0)
    derived = [derive(str(number).encode()) for number in range(2000)]
    # The bits that manual_seed keeps, made equal: nothing but the others tells them apart.
    alike = {seed >> 32 << 32 for seed in derived}
    assert len({noise(seed) for seed in alike}) == len(alike) > 1990


@pytest.mark.parametrize("seed", LONG)
def test_a_long_seed_is_always_the_same_noise(seed: int) -> None:
    made = generator(seed)
    assert made.initial_seed() == seed
    whole = torch.randn(2000, generator=made)
    assert whole.numpy().tobytes() == noise(seed, 2000)
    assert abs(whole.mean()) < 0.1
    assert abs(whole.std() - 1) < 0.1


def test_long_seeds_stay_what_they_are() -> None:
    """As a stored seed must give the same image in years."""
    drawn = torch.randint(2**31, (3,), generator=generator(2**32))
    assert drawn.tolist() == [529545506, 1567102475, 605991467]


def test_each_request_of_a_batch_has_a_generator_of_its_own() -> None:
    batch = [Prepared(make_request(seed)) for seed in LONG]
    made = arguments(GENERIC, (), KEY, batch)["generator"]
    assert isinstance(made, list)
    assert [torch.randn(4, generator=one).numpy().tobytes() for one in made] == [*map(noise, LONG)]
