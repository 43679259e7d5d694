"""Bootstrap intervals, their coverage, and tests of two runs."""

import math

import numpy as np
import pytest

from paliscribe.evaluation.bootstrap import Sums, difference, weights
from paliscribe.evaluation.comparison import mcnemar


def sums(values: np.ndarray, seed: int = 0, batch: int = 50) -> Sums:
    found = Sums(["value", "rows"], seed)
    for start in range(0, len(values), batch):
        part = values[start : start + batch]
        found.add(np.stack([part, np.ones(len(part))], axis=1))
    return found


def test_weights_are_of_a_poisson_distribution() -> None:
    drawn = weights(np.random.default_rng(0), 200_000)
    for count, expected in enumerate([math.exp(-1) / math.factorial(k) for k in range(4)]):
        assert np.mean(drawn == count) == pytest.approx(expected, abs=0.005)
    assert drawn.mean() == pytest.approx(1, abs=0.01)


def test_an_interval_of_a_mean_is_as_wide_as_theory_has_it() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = sums(values).figure("value", "rows")
    assert found["value"] == pytest.approx(values.mean(), abs=1e-6)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_nothing_and_one_row() -> None:
    assert sums(np.array([])).figure("value", "rows") == {"value": None, "low": None, "high": None}
    assert sums(np.array([0.25])).figure("value", "rows") == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_differences_are_paired() -> None:
    random = np.random.default_rng(2)
    mine = random.normal(0, 5, 500)
    better = sums(mine).ratio("value", "rows"), sums(mine + 0.2 + random.normal(0, 0.1, 500)).ratio("value", "rows")
    found = difference(*better)
    assert found["value"] == pytest.approx(0.2, abs=0.02)
    assert found["high"] - found["low"] < 0.05, "far less than the spread of the rows"
    assert found["p"] < 0.01
    same = sums(mine).ratio("value", "rows")
    assert difference(same, same) == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


# The binomial test by hand: 2 * P(X <= least) for n rows that differ, at most 1.
@pytest.mark.parametrize(
    ("better", "worse", "p"), [(0, 0, 1.0), (3, 3, 1.0), (5, 0, 2 / 32), (8, 2, 2 * (1 + 10 + 45) / 1024), (1, 0, 1.0)]
)
def test_mcnemar(better: int, worse: int, p: float) -> None:
    assert mcnemar(better, worse) == pytest.approx(p)
    assert mcnemar(worse, better) == pytest.approx(p)


def test_mcnemar_of_many_rows() -> None:
    assert 0 < mcnemar(50_500, 49_500) < 0.01
