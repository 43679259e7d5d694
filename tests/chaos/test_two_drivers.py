"""Two drivers at once on one output never both count: every record once, every shard committed once."""

import random

import pytest
from chaos import drivers
from chaos.trial import World


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 50))])
def test_the_holder_of_the_lease_is_stopped_and_continued(world: World, seed: int) -> None:
    tally = drivers.two_drivers(world, random.Random(seed))
    assert tally.good, tally.wrong
    assert tally.faults
