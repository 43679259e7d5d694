"""Average precision of matched boxes or masks, as COCO's reference implementation has it, with bootstrap intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from paliscribe.evaluation.bootstrap import Floats, interval, weights
from paliscribe.evaluation.matching import AREAS, THRESHOLDS, Labels, Matched

RECALLS = np.linspace(0.0, 1.0, 101)
REPLICATES, LEAST_REPLICATES = 200, 40
WORK, LABEL_WORK = 40_000_000, 500  # found shapes times replicates, about a minute on one core; of a label
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR")
Ints = npt.NDArray[np.int32]


class Collected:
    """The matches of all images: about 70 bytes for each found shape and 20 for each true one, until the end.

    `images`: number of images so far.
    """

    def __init__(self) -> None:
        self.images = 0
        self._found: list[tuple[Any, ...]] = []
        self._true: list[tuple[Any, ...]] = []
        self._waiting: list[tuple[int, Matched]] = []

    def add(self, matches: Sequence[Matched]) -> None:
        """Add the matches of the next image."""
        self._waiting += [(self.images, each) for each in matches]
        self.images += 1
        if len(self._waiting) > 10_000:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        images = [image for image, _ in self._waiting]
        labels = [each.label for _, each in self._waiting]
        sizes = [len(each.scores) for _, each in self._waiting]
        parts = [each for _, each in self._waiting]
        self._found.append(
            (
                np.repeat(np.array(labels, np.int32), sizes),
                np.repeat(np.array(images, np.int32), sizes),
                np.concatenate([each.scores for each in parts]),
                np.concatenate([each.matched.T for each in parts]),
                np.concatenate([each.ignored.T for each in parts]),
            )
        )
        self._true.append(
            (np.array(labels, np.int32), np.array(images, np.int32), np.stack([each.true for each in parts]))
        )
        self._waiting = []

    def by_label(self) -> dict[int, "OfLabel"]:
        """What was collected, by label; afterwards nothing can be added."""
        self._settle()
        if not self._found:
            return {}
        label, image, score, matched, ignored = (np.concatenate(each) for each in zip(*self._found, strict=True))
        self._found = []
        true_label, true_image, true = (np.concatenate(each) for each in zip(*self._true, strict=True))
        self._true = []
        order = np.lexsort((-score, label))  # stable: of equal scores the first image's comes first
        true_order = np.argsort(true_label, kind="stable")
        result = {}
        for number in range(int(true_label.max()) + 1):
            mine = order[slice(*np.searchsorted(label, (number, number + 1), sorter=order))]
            its = true_order[slice(*np.searchsorted(true_label, (number, number + 1), sorter=true_order))]
            result[number] = OfLabel(image[mine], score[mine], matched[mine], ignored[mine], true_image[its], true[its])
        return result


@dataclass
class OfLabel:
    """The matches of a label: of its found shapes, highest score first, and numbers of true ones by image and area."""

    image: Ints
    score: Floats
    matched: npt.NDArray[np.uint16]
    ignored: npt.NDArray[np.uint16]
    true_image: Ints
    true: Ints

    @cached_property
    def outcomes(self) -> list[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
        """For each range of areas what is right and what is wrong: [thresholds, found]."""
        bits = np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None]
        pairs = []
        for at in range(len(AREAS)):
            matched, counts = (
                (self.matched[:, at] >> bits & 1).astype(bool),
                ~(self.ignored[:, at] >> bits & 1).astype(bool),
            )
            pairs.append((matched & counts, ~matched & counts))
        return pairs

    def precision(self, area: int, weight: npt.NDArray[np.uint8] | None = None) -> tuple[Floats, Floats] | None:
        """Precision at `RECALLS`, [thresholds, 101], and the recall of all, [thresholds]; None without a true shape.

        `weight`: of each image.
        """
        true = self.true[:, area]
        total = float(true.sum() if weight is None else (true * weight[self.true_image]).sum())
        if not total:
            return None
        each = np.uint8(1) if weight is None else weight[self.image]
        right, wrong = (outcome * each for outcome in self.outcomes[area])
        hits, misses = np.cumsum(right, axis=1, dtype=np.float64), np.cumsum(wrong, axis=1, dtype=np.float64)
        recall = hits / total
        precision = hits / (hits + misses + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
        found = np.stack(
            [row[np.searchsorted(at, RECALLS, side="left")] for row, at in zip(padded, recall, strict=True)]
        )
        return found, recall[:, -1] if recall.shape[1] else np.zeros(len(recall))


class Precision:
    """Average precision over labels. `images`: that the matches are of. `labels`: their names."""

    def __init__(self, collected: Collected, labels: Labels, seed: int) -> None:
        self.images, self._labels, self._seed = collected.images, labels, seed
        self._by_label = collected.by_label()
        found = sum(len(each.score) for each in self._by_label.values())
        work = found + LABEL_WORK * len(self._by_label)
        self.replicates = max(LEAST_REPLICATES, min(REPLICATES, WORK // max(1, work)))

    def values(self, weight: npt.NDArray[np.uint8] | None = None) -> Floats:
        """The figures named in `FIGURES`, in 0 to 1; NaN for those without a true shape."""
        parts: list[list[Floats]] = [[] for _ in AREAS]
        recalls = []
        for each in self._by_label.values():
            for area, found in enumerate(parts):
                if (curve := each.precision(area, weight)) is not None:
                    found.append(curve[0].mean(axis=1))
                    if area == 0:
                        recalls.append(curve[1].mean())
        whole = np.mean(parts[0], axis=0) if parts[0] else np.full(len(THRESHOLDS), np.nan)
        sizes = [np.mean(found) if found else np.nan for found in parts[1:]]
        return np.array([whole.mean(), whole[0], whole[5], *sizes, np.mean(recalls) if recalls else np.nan])

    @cached_property
    def drawn(self) -> Floats:
        """The figures in each replicate, in which images are weighted: [replicates, figures]."""
        return np.array([self.values(weight) for weight in self._weights()])

    def _weights(self) -> Iterator[npt.NDArray[np.uint8]]:
        random = np.random.default_rng(self._seed)
        return (weights(random, self.images) for _ in range(self.replicates))

    def figures(self) -> dict[str, dict[str, Any]]:
        """Each figure with its interval."""
        return {
            name: interval(value, drawn)
            for name, value, drawn in zip(FIGURES, self.values(), self.drawn.T, strict=True)
        }

    def of_labels(self) -> list[dict[str, Any]]:
        """AP and AP50 of each label, and its true and found shapes; those with most true ones first."""
        names = {number: name for name, number in self._labels.numbers.items()}
        rows = []
        for number, each in self._by_label.items():
            curve = each.precision(0)
            found = None if curve is None else curve[0]
            rows.append(
                {
                    "label": names[number],
                    "AP": None if found is None else round(float(found.mean()), 6),
                    "AP50": None if found is None else round(float(found[0].mean()), 6),
                    "true": int(each.true[:, 0].sum()),
                    "found": len(each.score),
                }
            )
        return sorted(rows, key=lambda row: (-row["true"], row["label"]))
