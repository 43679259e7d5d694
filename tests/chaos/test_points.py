"""Drivers that are killed at every step of every phase of a run, on a disk and in an object store."""

import itertools
import random
from pathlib import Path

import pytest
from chaos import kinds
from chaos.driver import MOMENTS, Point
from chaos.proxy import Proxy
from chaos.trial import PHASES, Tally, World


def check(tally: Tally, faults: int = 0) -> None:
    assert tally.good, tally.wrong
    assert tally.faults >= faults, "too few were disturbed"


@pytest.mark.parametrize("phase", PHASES)
def test_a_driver_ends_at_every_step(world: World, phase: str) -> None:
    drawn = random.Random(phase)
    chosen = [Point(step, 1, drawn.choice(MOMENTS)) for step in world.steps[phase]]  # in their order
    check(kinds.at_points(world, phase, chosen), faults=len(chosen) - 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_driver_is_killed_at_any_moment(world: World, seed: int) -> None:
    check(kinds.any_moment(world, random.Random(seed)))


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
def test_every_point_alone(world: World, phase: str) -> None:
    for step, times in world.steps[phase].items():
        for number, moment in itertools.product(range(1, times + 1), MOMENTS):
            check(kinds.at_points(world, phase, [Point(step, number, moment)]), faults=1)


def test_points_in_an_object_store(stored: World) -> None:
    """`during`: the store has what was written, and the driver never learns it."""
    chosen = [Point(step, 1, "during") for step in ("the data of a shard", "the commit of a shard", "a part's marker")]
    check(kinds.at_points(stored, "annotate", chosen), faults=3)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 10))])
def test_requests_to_the_store_fail(stored: World, proxy: Proxy, seed: int) -> None:
    check(kinds.store_faults(stored, random.Random(seed), proxy), faults=3)


def test_credentials_end(stored: World, proxy: Proxy) -> None:
    check(kinds.expired_credentials(stored, random.Random(2), proxy), faults=1)


def test_a_disk_is_full_and_becomes_read_only(world: World, tmp_path: Path) -> None:
    with kinds.small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("only root may mount a small disk")
        small = world.at(str(disk / "disturbed"))
        for seed, kind in enumerate((kinds.full_disk, kinds.read_only_disk)):
            check(kind(small, random.Random(seed), disk), faults=1)
