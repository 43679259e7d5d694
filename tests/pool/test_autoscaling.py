"""How many replicas queued work calls for."""

import pytest

from paliscribe.config import PoolConfig
from paliscribe.errors import UsageError
from paliscribe.pool.autoscaling import autoscaling, desired_replicas


@pytest.mark.parametrize(
    ("rows", "calls", "each", "replicas"),
    [
        ([], 0, None, 0),
        ([], 3, None, 1),  # the first call to a pool of none
        ([0], 0, None, 0),
        ([0], 1, None, 1),
        ([40], 1, None, 1),
        ([41], 1, None, 2),
        ([40, 41], 2, None, 3),
        ([100, 0], 2, 10, 10),
        ([100, 0], 2, 1000, 1),
    ],
)
def test_replicas_for_work(rows: list[float], calls: float, each: int | None, replicas: int) -> None:
    held = dict(enumerate(rows))
    assert desired_replicas(held, dict.fromkeys(held, 40.0), calls, each) == replicas


def test_a_number_stays_and_bounds_scale() -> None:
    assert autoscaling(PoolConfig(replicas=3), 3) is None
    assert autoscaling(PoolConfig(), 3) is None
    scaled = autoscaling(PoolConfig(min_replicas=0), 3)
    assert scaled is not None
    assert (scaled.min_replicas, scaled.max_replicas) == (0, 3)
    scaled = autoscaling(PoolConfig(max_replicas=5), 3)
    assert scaled is not None
    assert (scaled.min_replicas, scaled.max_replicas) == (1, 5)


@pytest.mark.parametrize("wrong", [{"replicas": 2, "max_replicas": 3}, {"min_replicas": 3, "max_replicas": 2}])
def test_bounds_are_checked(wrong: dict[str, int]) -> None:
    from paliscribe.config import parse

    with pytest.raises(UsageError, match=r"^settings: 'pool': (set either `replicas`|min_replicas is above)"):
        parse({"manifest": "m", "tasks": ["ocr"], "output": "o", "pool": wrong})
