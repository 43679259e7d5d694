"""Found boxes or masks matched with the true ones of an image, by the rules of COCO's reference implementation.

pycocotools computes the overlaps. The matching is done here, image by image: pycocotools keeps a record of Python
objects for each image, label and range of areas, which millions of images do not fit into, and which intervals cannot
be computed from quickly.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

Bits = npt.NDArray[np.uint16]
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MOST = 100  # found ones of a label in an image that count


@dataclass(frozen=True, slots=True)
class Shape:
    """A box or a mask. `label`: as it is compared. `place`: x, y, width and height in pixels, or a COCO RLE.

    `crowd`: a region of many objects; what is found in it is neither right nor wrong. `score`: of a found one.
    """

    label: str
    place: Any
    area: float
    crowd: bool = False
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Matched:
    """The found shapes of a label in an image, highest score first, and the true ones.

    `scores`: [n]. `matched`, `ignored`: [areas, n], a bit for each threshold. `true`: [areas], true shapes that count.
    """

    label: int
    scores: npt.NDArray[np.float64]
    matched: Bits
    ignored: Bits
    true: npt.NDArray[np.int32]


@dataclass
class Labels:
    """Labels and their numbers, in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def __call__(self, label: str) -> int:
        """The number of a label."""
        return self.numbers.setdefault(label, len(self.numbers))


def match(true: Sequence[Shape], found: Sequence[Shape], labels: Labels) -> list[Matched]:
    """Match the found shapes of an image with the true ones, label by label."""
    wanted, said = _by_label(true), _by_label(found)
    return [_match(labels(name), wanted.get(name, []), said.get(name, [])) for name in {**wanted, **said}]


def _by_label(shapes: Sequence[Shape]) -> Mapping[str, list[Shape]]:
    groups: dict[str, list[Shape]] = {}
    for shape in shapes:
        groups.setdefault(shape.label, []).append(shape)
    return groups


def _match(label: int, true: list[Shape], found: list[Shape]) -> Matched:
    found = sorted(found, key=lambda shape: -shape.score)[:MOST]
    crowd = [shape.crowd for shape in true]
    overlaps = _overlaps(true, found, crowd) if true and found else []
    matched, ignored = np.zeros((len(AREAS), len(found)), np.uint16), np.zeros((len(AREAS), len(found)), np.uint16)
    count = np.zeros(len(AREAS), np.int32)
    known: dict[Hashable, list[list[int]]] = {}
    for at, (low, high) in enumerate(AREAS.values()):
        aside = [shape.crowd or not low <= shape.area <= high for shape in true]
        count[at] = len(aside) - sum(aside)
        key = (
            tuple(aside) if 0 < sum(aside) < len(aside) else None
        )  # the order decides; without a difference there is one
        if key not in known:
            known[key] = _pairs(overlaps, aside, crowd, len(found))
        for number, partners in enumerate(known[key]):
            for index, partner in enumerate(partners):
                if partner >= 0:
                    matched[at, index] |= 1 << number
                outside = partner < 0 and not low <= found[index].area <= high
                if outside or (partner >= 0 and aside[partner]):
                    ignored[at, index] |= 1 << number
    return Matched(label, np.array([shape.score for shape in found], np.float64), matched, ignored, count)


def _overlaps(true: list[Shape], found: list[Shape], crowd: list[bool]) -> list[list[float]]:
    """Intersection over union of each found shape with each true one; over a crowd's, over the found one's area."""
    wrap: Callable[[list[Any]], Any] = list if isinstance(found[0].place, dict) else np.array
    places = (wrap([shape.place for shape in shapes]) for shapes in (found, true))
    overlaps: list[list[float]] = coco.iou(*places, [int(each) for each in crowd]).tolist()
    return overlaps


def _pairs(overlaps: list[list[float]], aside: list[bool], crowd: list[bool], count: int) -> list[list[int]]:
    """For each threshold the true shape of each found one, -1 for none: the best that is left, those aside last."""
    order = sorted(range(len(aside)), key=aside.__getitem__)
    best = [max(row) for row in overlaps]
    result = []
    for threshold in THRESHOLDS.tolist():
        taken: set[int] = set()
        partners = [-1] * count
        for index, row in enumerate(overlaps):
            least, partner = min(threshold, 1 - 1e-10), -1
            if best[index] < least:
                continue
            for other in order:
                if other in taken and not crowd[other]:
                    continue
                if partner > -1 and not aside[partner] and aside[other]:
                    break
                if row[other] >= least:
                    least, partner = row[other], other
            if partner > -1:
                partners[index] = partner
                taken.add(partner)
        result.append(partners)
    return result
