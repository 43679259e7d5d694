"""Scores answers against the ground truth of scenes. Pure Python, so that it works on any result file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max in pixels
Labelled = tuple[str, Box]

FLOORS = {"answer_exact": 0.97, "caption_f1": 0.95, "detect_f1": 0.90, "ocr_exact": 0.75, "segment_iou": 0.70}
"""Minimum figures of the demo checkpoint on held-out scenes, by keys of `summarise`."""

OVERLAPPING = {"detect", "detect_present", "segment", "segment_present"}
"""Names whose answers are compared by overlap, never to the pixel."""

_COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_BOX = re.compile(r"((?:<loc\d{4}>){4})(?:<seg\d{3}>)* ([^<>;]+)")


@dataclass(frozen=True, slots=True)
class Result:
    """An answer and the expected one.

    Boxes are for `detect` and `segment`, in pixels of the original image. `overlaps`, for `segment`: the IoU of each
    expected mask with the one found for it; 0 if it was missed.
    """

    task: str  # caption, ocr, answer, detect or segment
    kind: str  # finer than the task, as in `answers.Item`; may be empty
    expected: str
    predicted: str
    expected_boxes: Sequence[Labelled] = ()
    predicted_boxes: Sequence[Labelled] = ()
    overlaps: Sequence[float] = ()


@dataclass(slots=True)
class Matches:
    """Counts of true positives (`hit`), false positives (`extra`) and false negatives (`missed`)."""

    hit: int = 0
    extra: int = 0
    missed: int = 0

    def add(self, other: Matches) -> None:
        """Add the counts of another."""
        self.hit += other.hit
        self.extra += other.extra
        self.missed += other.missed

    @property
    def precision(self) -> float:
        """True positives of all predicted; 1 if nothing was predicted."""
        return self.hit / (self.hit + self.extra) if self.hit + self.extra else 1.0

    @property
    def recall(self) -> float:
        """True positives of all expected; 1 if nothing was expected."""
        return self.hit / (self.hit + self.missed) if self.hit + self.missed else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 if nothing was expected and nothing predicted."""
        total = 2 * self.hit + self.extra + self.missed
        return 2 * self.hit / total if total else 1.0


@dataclass(slots=True)
class _Tally:
    """Running sums of one task."""

    count: int = 0
    exact: int = 0
    matches: Matches = field(default_factory=Matches)
    edits: int = 0
    characters: int = 0
    overlaps: list[float] = field(default_factory=list)


def summarise(results: Iterable[Result]) -> dict[str, float]:
    """All figures, as `<task>_<figure>` and `<task>_<kind>_exact`, with counts as `<name>_n`.

    `ocr` covers scenes with text only; `ocr_none_exact` is the share of empty answers for scenes without text.
    `segment_iou` is the mean over all expected masks; `segment` counts prompts.
    """
    tallies: dict[str, _Tally] = {}
    for result in results:
        kind = f"{result.task}_{result.kind}" if result.kind else result.task
        silent_ocr = result.task == "ocr" and not result.expected
        for name in {kind} if silent_ocr else {result.task, kind}:
            _count(tallies.setdefault(name, _Tally()), result)
    figures: dict[str, float] = {}
    for name, tally in sorted(tallies.items()):
        figures[f"{name}_n"] = tally.count
        if name not in OVERLAPPING:
            figures[f"{name}_exact"] = tally.exact / tally.count
        if name in ("caption", "detect", "segment"):
            figures[f"{name}_precision"] = tally.matches.precision
            figures[f"{name}_recall"] = tally.matches.recall
            figures[f"{name}_f1"] = tally.matches.f1
        if name == "ocr":
            figures["ocr_cer"] = tally.edits / tally.characters
        if name == "segment" and tally.overlaps:
            figures["segment_iou"] = sum(tally.overlaps) / len(tally.overlaps)
    return figures


def missed_floors(figures: dict[str, float]) -> list[str]:
    """Names of the figures below their floor."""
    return [name for name, floor in FLOORS.items() if figures.get(name, 0.0) < floor]


def exact(expected: str, predicted: str) -> bool:
    """Whether two answers are equal, ignoring surrounding whitespace."""
    return expected.strip() == predicted.strip()


def caption_items(text: str) -> Counter[str]:
    """Items of a caption with counts: "two blue squares and some text" is 2 x "blue square" and 1 x "some text"."""
    items: Counter[str] = Counter()
    for part in re.split(r", | and ", text.strip()):
        number, _, thing = part.partition(" ")
        if number in _COUNTS and thing:
            items[thing.removesuffix("s") if _COUNTS[number] > 1 else thing] += _COUNTS[number]
        elif part:
            items[part] += 1
    return items


def match_items(expected: Counter[str], predicted: Counter[str]) -> Matches:
    """Compare the items of two captions."""
    hit = (expected & predicted).total()
    return Matches(hit, predicted.total() - hit, expected.total() - hit)


def match_boxes(expected: Sequence[Labelled], predicted: Sequence[Labelled], threshold: float = 0.5) -> Matches:
    """Match boxes of equal labels greedily by IoU, best pair first, each box at most once. `threshold`: least IoU."""
    pairs = sorted(
        (
            (overlap(truth, found), i, j)
            for i, (label, truth) in enumerate(expected)
            for j, (other, found) in enumerate(predicted)
            if label == other
        ),
        reverse=True,
    )
    used_expected: set[int] = set()
    used_predicted: set[int] = set()
    for value, i, j in pairs:
        if value >= threshold and i not in used_expected and j not in used_predicted:
            used_expected.add(i)
            used_predicted.add(j)
    hit = len(used_expected)
    return Matches(hit, len(predicted) - hit, len(expected) - hit)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return width * height / (area - width * height)


def read_boxes(text: str, width: int, height: int) -> list[Labelled]:
    """The well-formed boxes of an answer to `detect` or `segment`, in pixels of an image of this size."""
    boxes: list[Labelled] = []
    for locations, label in _BOX.findall(text):
        y_min, x_min, y_max, x_max = (int(value) / 1023 for value in re.findall(r"\d{4}", locations))
        boxes.append((label.strip(), (x_min * width, y_min * height, x_max * width, y_max * height)))
    return boxes


def edit_distance(expected: str, predicted: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(predicted) + 1))
    for i, char in enumerate(expected, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(predicted, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (char != other))
    return row[-1]


def _count(tally: _Tally, result: Result) -> None:
    tally.count += 1
    tally.exact += exact(result.expected, result.predicted)
    if result.task == "caption":
        tally.matches.add(match_items(caption_items(result.expected), caption_items(result.predicted)))
    elif result.task in ("detect", "segment"):
        tally.matches.add(match_boxes(result.expected_boxes, result.predicted_boxes))
        tally.overlaps += result.overlaps
    elif result.task == "ocr":
        tally.edits += edit_distance(result.expected, result.predicted)
        tally.characters += len(result.expected)
