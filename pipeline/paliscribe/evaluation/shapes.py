"""Evaluates tasks that find boxes or masks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from paliscribe.evaluation.answers import CORNERS, Unreadable, boxes, decoded, masks, rle_of, same_label
from paliscribe.evaluation.bootstrap import Sums, difference
from paliscribe.evaluation.calibration import Reliability
from paliscribe.evaluation.collected import Collected
from paliscribe.evaluation.comparison import Changes
from paliscribe.evaluation.joined import Answer, Row
from paliscribe.evaluation.matching import Labels, Matched, Shape, match
from paliscribe.evaluation.precision import FIGURES, Precision
from paliscribe.evaluation.text import plain

COLUMNS = ["rows", "ok", "invalid", "error", "right", "found", "true"]
LABELS = 200  # of which AP is listed
What = Literal["box", "mask"]


def asked(prompt: str | None) -> frozenset[str] | None:
    """The labels that a prompt asks for; None if that is not known."""
    words = (prompt or "").partition(" ")[2]
    return frozenset(same_label(each) for each in words.split(";") if each.strip()) or None


class Shapes:
    """The figures of a task for its boxes or its masks. Of answers that are not ok nothing counts as found.

    `least`: score from which precision and recall are measured. `by_prompt`: whether only the true shapes with
    labels that the prompts ask for are wanted; what is found with another label is wrong.
    """

    level, target = "box", "matched"

    def __init__(self, what: What, seed: int, least: float, by_prompt: bool) -> None:
        self._what, self._seed, self._least, self._by_prompt = what, seed, least, by_prompt
        self._sums = Sums(COLUMNS, seed)
        self._pair = Sums([f"{side}.{name}" for side in "ab" for name in COLUMNS], seed)
        self._labels = Labels()
        self._collected, self._mine, self._theirs = (Collected() for _ in range(3))
        self.reliability, self.changes = Reliability(), Changes()
        self.unreadable = self.without_truth = self.not_asked = 0
        self.problem = ""
        self._precision: Precision | None = None

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        sums, pairs = [], []
        for row in rows:
            if row.rejected:
                self.without_truth += 1
                continue
            try:
                true = self._true(row)
            except Unreadable as error:
                self.unreadable += 1
                self.problem = self.problem or f"{row.id}: {error}"
                continue
            matched = match(true, list(self._found(row, row.answer)), self._labels)
            self._collected.add(matched)
            self._calibrate(row.id, matched)
            sums.append(self._columns(row.answer, matched))
            if row.other is not None:
                theirs = match(true, list(self._found(row, row.other)), self._labels)
                self._mine.add(matched)
                self._theirs.add(theirs)
                pairs.append(sums[-1] + self._columns(row.other, theirs))
                same = (row.answer.status, plain(row.answer.said)) == (row.other.status, plain(row.other.said))
                self.changes.add(row, same, 0.0, 0.0)
        if sums:
            self._sums.add(np.array(sums, np.float64))
        if pairs:
            self._pair.add(np.array(pairs, np.float64))

    def _wanted(self, row: Row) -> frozenset[str] | None:
        prompt = row.answer.prompt or (row.other.prompt if row.other else None)
        return asked(prompt) if self._by_prompt else None

    def _true(self, row: Row) -> list[Shape]:
        read = boxes if self._what == "box" else masks
        size = row.answer if row.answer.width else row.other or row.answer
        wanted = self._wanted(row)
        return [each for each in read(row.given, size.width, size.height) if wanted is None or each.label in wanted]

    def _found(self, row: Row, answer: Answer) -> Iterator[Shape]:
        wanted = self._wanted(row)
        if answer.status != "ok":
            return
        for shape in _boxes(answer) if self._what == "box" else _masks(answer):
            self.not_asked += answer is row.answer and wanted is not None and shape.label not in wanted
            yield shape

    def _calibrate(self, row_id: str, matched: Sequence[Matched]) -> None:
        for each in matched:
            for score, right, aside in zip(each.scores.tolist(), each.matched[0], each.ignored[0], strict=True):
                if not aside & 1:
                    self.reliability.add(row_id, score, float(right & 1))

    def _columns(self, answer: Answer, matched: Sequence[Matched]) -> list[float]:
        """`COLUMNS` of a row: at the least overlap, from the least score on."""
        right = found = true = 0
        for each in matched:
            counts = (each.scores >= self._least) & ((each.ignored[0] & 1) == 0)
            right += int(((each.matched[0] & 1) * counts).sum())
            found += int(counts.sum())
            true += int(each.true[0])
        return [1.0, *(float(answer.status == each) for each in ("ok", "invalid", "error")), right, found, true]

    def counts(self) -> dict[str, int]:
        """Rows that were compared, by status, and true and found shapes."""
        names = {
            "evaluated": "rows",
            "ok": "ok",
            "invalid": "invalid",
            "errors": "error",
            "true": "true",
            "found": "found",
        }
        return {word: round(self._sums.total(name)) for word, name in names.items()}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Each figure with its interval."""
        precision = self._of_all()
        own = {"precision": self._sums.figure("right", "found"), "recall": self._sums.figure("right", "true")}
        rates = {f"{name}_rate": self._sums.figure(name, "rows") for name in ("invalid", "error")}
        return precision.figures() | own | rates

    def labels(self) -> list[dict[str, Any]]:
        """AP of the labels with most true shapes."""
        return self._of_all().of_labels()[:LABELS]

    def _of_all(self) -> Precision:
        if self._precision is None:
            self._precision = Precision(self._collected, self._labels, self._seed)
        return self._precision

    def against(self) -> dict[str, Any]:
        """The other run's figures less this one's, over the rows that both have."""
        mine, theirs = (Precision(each, self._labels, self._seed) for each in (self._mine, self._theirs))
        mine.replicates = theirs.replicates = min(mine.replicates, theirs.replicates)
        pairs = zip(FIGURES, mine.values, mine.drawn.T, theirs.values, theirs.drawn.T, strict=True)
        differences = {name: difference((value, drawn), (other, theirs)) for name, value, drawn, other, theirs in pairs}
        ratios = {"precision": ("right", "found"), "recall": ("right", "true")}
        ratios |= {f"{name}_rate": (name, "rows") for name in ("invalid", "error")}
        differences |= {name: self._pair.paired(*columns) for name, columns in ratios.items()}
        return {"differences": differences} | self.changes.found(None)


def _boxes(answer: Answer) -> Iterator[Shape]:
    for box in answer.boxes:
        x, y, right, bottom = (box[side] for side in CORNERS)
        place = [x, y, right - x, bottom - y]
        yield Shape(same_label(box["label"]), place, place[2] * place[3], score=_score(box["score"], answer.score))


def _masks(answer: Answer) -> Iterator[Shape]:
    for mask in answer.masks:
        if mask["rle"] is not None and sum(mask["rle"]) == mask["height"] * mask["width"]:
            rle = rle_of(mask["rle"], mask["height"], mask["width"])
            area = float(sum(mask["rle"][1::2]))
            yield Shape(same_label(mask["label"]), rle, area, score=_score(mask["score"], answer.score))


def _score(*scores: float | None) -> float:
    """The first score that is a number; without one 0."""
    return next((score for score in scores if score is not None and math.isfinite(score)), 0.0)


def has_masks(rows: Sequence[Row]) -> bool:
    """Whether answers have masks as pixels and truth has masks, as far as these rows tell."""
    found = any(mask["rle"] is not None for row in rows for mask in row.answer.masks)
    return found and any("segmentation" in str(row.given) or "rle" in str(row.given) for row in rows)


def labels_asked(rows: Sequence[Row]) -> bool:
    """Whether one of these rows has truth with a label that its prompt asks for."""
    for row in rows:
        wanted = asked(row.answer.prompt) or frozenset()
        try:
            found = boxes([decoded(value) for value in row.given], row.answer.width, row.answer.height)
        except Unreadable:
            continue
        if any(shape.label in wanted for shape in found):
            return True
    return False
