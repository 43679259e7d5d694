"""Calibration: how often answers of a score are right, and a monotone map from score to that probability.

Scores are counted in steps of 0.0001, to which they are rounded when they are published. So memory is constant, and the
isotonic fit, by pooling adjacent violators, is exact.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paliscribe.errors import UsageError
from paliscribe.evaluation.bootstrap import Floats, rounded
from paliscribe.storage import StorageError, Store

KEY = "_evaluation/calibration.json"
BINS, STEPS = 15, 10_000


@dataclass(frozen=True)
class ScoreMap:
    """A monotone map from score to probability: linear between its points, constant outside.

    `target`: what the probability is of. `level`: `record` if it maps scores of records, `box` those of boxes.
    """

    target: str
    level: str
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: npt.ArrayLike) -> Floats:
        """Probabilities of scores: float64 of the same shape; NaN stays NaN."""
        found: Floats = np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)
        return found


class Reliability:
    """Counts of scored answers and of what was right of them. Rows are in two halves by a hash of their ids."""

    def __init__(self) -> None:
        self._count, self._right = np.zeros((2, STEPS + 1)), np.zeros((2, STEPS + 1))

    def add(self, row_id: str, score: float, right: float) -> None:
        """Add an answer. `score`: 0 to 1. `right`: 0 to 1."""
        half, step = zlib.crc32(row_id.encode()) % 2, round(min(1.0, max(0.0, score)) * STEPS)
        self._count[half, step] += 1
        self._right[half, step] += right

    def found(self, target: str, level: str) -> dict[str, Any] | None:
        """Expected calibration error and reliability curve; None without a scored answer.

        `after_map`: the error of scores that are mapped by a fit to the other half of the rows.
        """
        count, right = self._count.sum(axis=0), self._right.sum(axis=0)
        if not count.any():
            return None
        steps = np.arange(STEPS + 1) / STEPS
        error, curve = _expected_error(steps, count, right)
        halves = [(self._count[half], self._right[half]) for half in (0, 1)]
        after = None
        if all(counts.any() for counts, _ in halves):
            errors = [
                _expected_error(np.interp(steps, *_fitted(*halves[1 - half])), *halves[half])[0] * halves[half][0].sum()
                for half in (0, 1)
            ]
            after = sum(errors) / count.sum()
        return {
            "target": target,
            "level": level,
            "n": int(count.sum()),
            "expected_error": rounded(error),
            "after_map": rounded(after),
            "curve": curve,
        }

    def fit(self, target: str, level: str) -> ScoreMap | None:
        """The map that fits all answers; None without a scored one."""
        count, right = self._count.sum(axis=0), self._right.sum(axis=0)
        if not count.any():
            return None
        scores, probabilities = _fitted(count, right)
        return ScoreMap(target, level, tuple(scores.tolist()), tuple(probabilities.round(6).tolist()))


def _expected_error(scores: Floats, count: Floats, right: Floats) -> tuple[float, list[dict[str, Any]]]:
    """Expected calibration error (Guo et al. 2017) over 15 bins of equal width, and the bins that are not empty."""
    of = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(of, count, BINS)
    said, was = np.bincount(of, scores * count, BINS), np.bincount(of, right, BINS)
    curve = [
        {"score": rounded(said[at] / counts[at]), "right": rounded(was[at] / counts[at]), "n": int(counts[at])}
        for at in np.flatnonzero(counts)
    ]
    return float(np.abs(said - was).sum() / counts.sum()), curve


def _fitted(count: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Points of the isotonic fit: the ends of each block of equal probability."""
    known = np.flatnonzero(count)
    values = isotonic(right[known] / count[known], count[known])
    last = len(values) - 1
    ends = [at for at in range(len(values)) if at in (0, last) or not values[at - 1] == values[at] == values[at + 1]]
    return known[ends] / STEPS, values[ends]


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The non-decreasing values of least weighted squared distance: adjacent violators are pooled."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while blocks and blocks[-1][0] >= value:
            before, its_weight, its_size = blocks.pop()
            value = (value * weight + before * its_weight) / (weight + its_weight)
            weight, size = weight + its_weight, size + its_size
        blocks.append((value, weight, size))
    return np.repeat([value for value, _, _ in blocks], [size for _, _, size in blocks])


def write_maps(store: Store, maps: Mapping[tuple[str, str], ScoreMap]) -> None:
    """Keep the maps of tasks beside the run, in the place of those that there were. Raises StorageError."""
    found = [{"task": task, "kind": kind} | vars(each) for (task, kind), each in maps.items()]
    store.put(KEY, json.dumps({"maps": found}, ensure_ascii=False).encode())


def read_maps(store: Store) -> dict[tuple[str, str], ScoreMap]:
    """The maps that `evaluate --fit` has kept beside a run, by task and kind; empty if it has kept none.

    Raises StorageError, and UsageError for an object that holds none.
    """
    try:
        found: Sequence[dict[str, Any]] = json.loads(store.get(KEY))["maps"]
        return {
            (each["task"], each["kind"]): ScoreMap(
                each["target"], each["level"], tuple(each["scores"]), tuple(each["probabilities"])
            )
            for each in found
        }
    except StorageError as error:
        if error.kind == "missing":
            return {}
        raise
    except (ValueError, TypeError, KeyError):
        raise UsageError(f"{store.uri}/{KEY} holds no maps of scores; run evaluate --fit again") from None
