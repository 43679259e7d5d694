"""Average precision of matched boxes or masks, as COCO's reference implementation has it, with bootstrap intervals."""

from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from paliscribe.evaluation.bootstrap import Floats, interval, rounded, weights_of
from paliscribe.evaluation.collected import Collected, Part
from paliscribe.evaluation.matching import AREAS, THRESHOLDS, Labels

RECALLS = np.linspace(0.0, 1.0, 101)
REPLICATES, LEAST_REPLICATES = 200, 40
WORK, LABEL_WORK = 40_000_000, 500  # found shapes times replicates, about a minute on one core; of a label
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
Weigh = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]


class _OfLabel:
    """What the shapes of a label add up to, in each replicate: true ones, and precision at `RECALLS`, see `add`."""

    def __init__(self, replicates: int) -> None:
        shape = (replicates, len(AREAS), len(THRESHOLDS))
        self.found = 0
        self.true = np.zeros(shape[:2])
        self.right, self.wrong, self.best = np.zeros(shape), np.zeros(shape), np.zeros((*shape, len(RECALLS)))

    def add(self, part: Part, weight: npt.NDArray[np.uint8]) -> None:
        """Add a part. `weight`: of each shape, [replicates, n].

        Precision at a recall is the best one from the first found shape on that reaches it, so the best of all parts.
        """
        if part.true is not None:
            self.true += weight.astype(np.float64) @ part.true
            return
        self.found += len(part.image)
        for area in range(len(AREAS)):
            right, wrong = _outcomes(part, area)
            for replicate in np.flatnonzero(self.true[:, area]):
                at = (replicate, area)
                hits, misses = (
                    before[at][:, None] + np.cumsum(each * weight[replicate], axis=1, dtype=np.float64)
                    for before, each in ((self.right, right), (self.wrong, wrong))
                )
                self.right[at], self.wrong[at] = hits[:, -1], misses[:, -1]
                np.maximum(self.best[at], _at_recalls(hits, misses, self.true[at]), out=self.best[at])


def _outcomes(part: Part, area: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """What is right and what is wrong of found shapes: [thresholds, n]."""
    bits = np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None]
    matched, aside = ((each[:, area] >> bits & 1).astype(bool) for each in (part.matched, part.ignored))
    return matched & ~aside, ~matched & ~aside


def _at_recalls(hits: Floats, misses: Floats, total: float) -> Floats:
    """The best precision from each recall on, [thresholds, 101]; 0 where it is not reached."""
    precision = hits / (hits + misses + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    recall = hits / total
    return np.stack([row[np.searchsorted(at, RECALLS, side="left")] for row, at in zip(padded, recall, strict=True)])


def measured(collected: Collected, weigh: Weigh) -> tuple[Floats, list[dict[str, Any]]]:
    """The figures named in `FIGURES`, and of each label its number, AP, AP50, and true and found shapes.

    `weigh`: weights of images, [replicates, n]. The figures are in 0 to 1, NaN without a true shape: [replicates, 7].
    Those of labels are of the first replicate. Each label takes memory for its numbers only.
    """
    replicates = len(weigh(np.zeros(1, np.int64)))
    sums, recalls = np.zeros((replicates, len(AREAS), len(THRESHOLDS))), np.zeros(replicates)
    labels = np.zeros((replicates, len(AREAS)))  # that have true shapes
    rows: list[dict[str, Any]] = []
    for number, parts in groupby(collected.parts(), key=lambda part: part.label):
        each = _OfLabel(replicates)
        for part in parts:
            each.add(part, weigh(part.image))
        known = each.true > 0
        precision = each.best.mean(axis=-1)
        sums, labels = sums + precision, labels + known
        recalls[known[:, 0]] += (each.right[known[:, 0], 0] / each.true[known[:, 0], :1]).mean(axis=-1)
        ap, ap50 = (rounded(precision[0, 0].mean()), rounded(precision[0, 0, 0])) if known[0, 0] else (None, None)
        rows.append({"label": number, "AP": ap, "AP50": ap50, "true": int(each.true[0, 0]), "found": each.found})
    with np.errstate(invalid="ignore"):
        means = sums / labels[:, :, None]
        whole, recall = means[:, 0], recalls / labels[:, 0]
    columns = [whole.mean(axis=1), whole[:, 0], whole[:, 5], *means[:, 1:].mean(axis=2).T, recall]
    return np.stack(columns, axis=1), rows


class Precision:
    """Average precision over labels. `labels`: their names. `replicates`: of the intervals; 0: as many as are quick."""

    def __init__(self, collected: Collected, labels: Labels, seed: int, replicates: int = 0) -> None:
        self._collected, self._labels, self._seed = collected, labels, seed
        work = collected.found + LABEL_WORK * len(collected.labels)
        self.replicates = replicates or max(LEAST_REPLICATES, min(REPLICATES, WORK // max(1, work)))

    @cached_property
    def _measured(self) -> tuple[Floats, list[dict[str, Any]]]:
        return measured(self._collected, weigher(self._seed, self.replicates))

    @property
    def values(self) -> Floats:
        """The figures named in `FIGURES`, in 0 to 1; NaN for those without a true shape."""
        return cast(Floats, self._measured[0][0])

    @property
    def drawn(self) -> Floats:
        """The figures in each replicate, in which images are weighted: [replicates, figures]."""
        return self._measured[0][1:]

    def figures(self) -> dict[str, dict[str, Any]]:
        """Each figure with its interval."""
        return {
            name: interval(value, drawn) for name, value, drawn in zip(FIGURES, self.values, self.drawn.T, strict=True)
        }

    def of_labels(self) -> list[dict[str, Any]]:
        """AP and AP50 of each label, and its true and found shapes; those with most true ones first."""
        names = {number: name for name, number in self._labels.numbers.items()}
        rows = [row | {"label": names[row["label"]]} for row in self._measured[1]]
        return sorted(rows, key=lambda row: (-row["true"], row["label"]))


def weigher(seed: int, replicates: int) -> Weigh:
    """The weights of images by their number: 1 in the first place, then Poisson weights for each replicate."""

    def weigh(images: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.concatenate([np.ones((1, len(images)), np.uint8), weights_of(images, seed, replicates)])

    return weigh
