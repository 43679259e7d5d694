"""Slots from bytes: what a GPU's memory holds, and what a share of it does."""

import pytest
import torch
from models import demo_model, random_model

from paliscribe.config import PoolConfig
from paliscribe.engine.sizing import (
    CONTEXT,
    MAX_SLOTS,
    ONLINE_SLOTS,
    limit_memory_to_share,
    slots_in_memory,
    workspace_bytes,
)

GIB = 2**30


def slots(free: float, share: float, weights: float, each: float = 0.0625, total: float = 24, beside: float = 0) -> int:
    """All in GiB."""
    sizes = {"free": free, "total": total, "weights": weights, "workspace": beside, "slot_bytes": each}
    return slots_in_memory(share=share, **{name: int(size * GIB) for name, size in sizes.items()})


def test_a_whole_device_is_filled_by_what_is_free() -> None:
    assert slots(18, 1.0, 6) == 172 - 8, "six tenths of 18 GiB"
    assert slots(10, 1.0, 6) == 96 - 8, "others have taken a part of it"
    assert slots(1000, 1.0, 6, total=1006) == MAX_SLOTS


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


def test_what_steps_need_beside_slots_is_left_to_them() -> None:
    assert slots(18, 1.0, 6, beside=2) == 153 - 8, "six tenths of 16 GiB"
    assert slots(6, 0.5, 10, beside=3) == 1, "there is always room for one"


def test_a_step_of_all_slots_fills_whole_tiles() -> None:
    assert MAX_SLOTS + ONLINE_SLOTS == 256


def test_logits_count_by_the_vocabulary() -> None:
    small = workspace_bytes(demo_model())
    assert small > 1.5 * GIB
    wide = random_model(0, vocab_size=100_000)[0]
    assert workspace_bytes(wide) - small == 256 * (100_000 - 1638) * 12, (
        "logits in float32, and twice their log-probabilities"
    )


def test_a_share_leaves_room_for_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process takes on a GPU lies outside the limit on its allocations: two halves must fit beside both."""
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    limit_memory_to_share("cuda", PoolConfig(gpus_per_replica=0.5))
    limit_memory_to_share("cpu", PoolConfig(gpus_per_replica=0.5))
    limit_memory_to_share("cuda", PoolConfig(gpus_per_replica=1))
    assert len(shares) == 1 and 2 * (shares[0] * 24 * GIB + CONTEXT) <= 24 * GIB
