"""Bootstrap intervals of ratios of sums, in one pass and in constant memory.

Each row gets a weight of a Poisson distribution of mean 1 in each replicate, instead of being drawn with replacement:
so rows can be weighted as they come (Chamandy et al. 2012). Two runs over the same rows get the same weights, which
makes their difference a paired one.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
REPLICATES, LEVEL = 1000, 0.95
CHUNK = 2048  # rows that are weighted together
_DRAWS = 1 << 16
_STEPS = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)]) * _DRAWS
_POISSON = np.searchsorted(_STEPS, np.arange(_DRAWS) + 0.5).astype(np.uint8)  # weight of a 16-bit number


def weights(random: np.random.Generator, *shape: int) -> npt.NDArray[np.uint8]:
    """Poisson weights of mean 1."""
    drawn: npt.NDArray[np.uint8] = _POISSON[random.integers(0, _DRAWS, shape, dtype=np.uint16)]
    return drawn


def weights_of(numbers: npt.NDArray[np.int64], seed: int, replicates: int) -> npt.NDArray[np.uint8]:
    """Poisson weights of mean 1 of numbered things, in any order and company: [replicates, numbers].

    Four weights from each output of SplitMix64 (Steele, Lea and Flood 2014), a key for every four replicates.
    """
    keys = np.random.default_rng(seed).integers(0, 1 << 64, -(-replicates // 4), dtype=np.uint64)
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + keys[:, None]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    drawn = mixed.view(np.uint16).reshape(len(keys), len(numbers), 4).swapaxes(1, 2).reshape(-1, len(numbers))
    found: npt.NDArray[np.uint8] = _POISSON[drawn[:replicates]]
    return found


class Sums:
    """Sums of named columns over rows, as they are and in each replicate."""

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self._at = {name: at for at, name in enumerate(names)}
        self._random = np.random.default_rng(seed)
        self._total, self._drawn = np.zeros(len(names)), np.zeros((REPLICATES, len(names)))

    def add(self, values: Floats) -> None:
        """Add rows: [rows, columns]."""
        self._total += values.sum(axis=0)
        for start in range(0, len(values), CHUNK):
            part = values[start : start + CHUNK]
            self._drawn += weights(self._random, REPLICATES, len(part)).astype(np.float32) @ part.astype(np.float32)

    def total(self, name: str) -> float:
        """The sum of a column."""
        return float(self._total[self._at[name]])

    def ratio(self, over: str, under: str) -> tuple[float, Floats]:
        """One column's sum by another's, and the same in each replicate; NaN without any."""
        over_at, under_at = self._at[over], self._at[under]
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self._drawn[:, over_at] / self._drawn[:, under_at]
            return float(np.divide(self._total[over_at], self._total[under_at])), drawn

    def figure(self, over: str, under: str) -> dict[str, Any]:
        """`ratio` as `interval` gives it."""
        return interval(*self.ratio(over, under))

    def paired(self, over: str, under: str) -> dict[str, Any]:
        """`difference` of the ratio of columns `b.` and that of columns `a.`."""
        return difference(self.ratio(f"a.{over}", f"a.{under}"), self.ratio(f"b.{over}", f"b.{under}"))


def interval(value: float, drawn: Floats) -> dict[str, Any]:
    """A value with the ends of its 95 % interval, by percentiles of the replicates; null where there is none."""
    known = drawn[np.isfinite(drawn)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, (tail, 1 - tail)) if known.size else (math.nan, math.nan)
    return {name: rounded(number) for name, number in (("value", value), ("low", low), ("high", high))}


def difference(mine: tuple[float, Floats], theirs: tuple[float, Floats]) -> dict[str, Any]:
    """Theirs less mine with its paired interval and `p`, two-sided: how often the replicates differ in sign."""
    drawn = theirs[1] - mine[1]
    known = drawn[np.isfinite(drawn)]
    least = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0)) if known.size else 0
    p = min(1.0, 2 * (1 + least) / (1 + known.size)) if known.size else None
    return interval(theirs[0] - mine[0], drawn) | {"p": rounded(p)}


def rounded(number: float | None) -> float | None:
    """A number with six digits after the point; None for what is not finite."""
    return None if number is None or not math.isfinite(number) else round(float(number), 6)
