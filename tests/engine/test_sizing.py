"""Slots from bytes: what a GPU's memory holds, and what a share of it does."""

import pytest

from pipeline.engine.sizing import MOST_SLOTS, slots_in_memory

GIB = 2**30


def slots(free: float, share: float, weights: float, each: float = 0.0625, total: float = 24) -> int:
    """All in GiB."""
    sizes = {"free": free, "total": total, "weights": weights, "each": each}
    return slots_in_memory(share=share, **{name: int(size * GIB) for name, size in sizes.items()})


def test_a_whole_device_is_filled_by_what_is_free() -> None:
    assert slots(18, 1.0, 6) == 172 - 8, "six tenths of 18 GiB"
    assert slots(10, 1.0, 6) == 96 - 8, "others have taken a part of it"
    assert slots(1000, 1.0, 6, total=1006) == MOST_SLOTS


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_shares_of_one_device_never_sum_to_more_than_it_has(share: float) -> None:
    """Replicas that start together see the same free memory; one that starts late sees what the others have left."""
    weights, each = 3.0, 0.02
    first = slots(24 - round(1 / share) * weights, share, weights, each)
    assert round(1 / share) * (weights + (first + 8) * each) <= 24
    late = slots(24 - weights - (round(1 / share) - 1) * (weights + (first + 8) * each), share, weights, each)
    assert late == first, "whoever comes last finds its part untouched"


def test_a_share_is_no_more_than_is_free() -> None:
    assert slots(2, 0.5, 6) == 19 - 8
    assert slots(12, 0.5, 12) == 1, "nothing is left beside the weights"
