"""Two drivers at once on one output never both count: every record once, every shard committed once."""

import random

import pytest
from chaos import drivers
from chaos.driver import Point
from chaos.trial import PHASES, Tally, World

pytestmark = pytest.mark.long


def check(tally: Tally) -> None:
    assert tally.good, tally.wrong
    assert tally.faults


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 50))])
def test_the_holder_of_the_lease_is_stopped_and_continued(world: World, seed: int) -> None:
    check(drivers.two_drivers(world, random.Random(seed)))


def test_a_driver_goes_on_after_another_has_finished_the_run(world: World) -> None:
    check(drivers.overtaken(world, "annotate", Point("the commit of a shard", 2, "before")))


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
def test_the_same_at_every_step(world: World, phase: str) -> None:
    for step in world.steps[phase]:
        check(drivers.overtaken(world, phase, Point(step, 1, "before")))
