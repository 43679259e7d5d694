"""Evaluates tasks whose answers are texts, in two passes: how rare n-grams are, then the figures of each row."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from paliscribe.evaluation import text
from paliscribe.evaluation.answers import Unreadable, texts
from paliscribe.evaluation.bootstrap import Floats, Sums
from paliscribe.evaluation.calibration import Reliability
from paliscribe.evaluation.cider import Frequencies, grams, tokens
from paliscribe.evaluation.comparison import Changes
from paliscribe.evaluation.joined import Answer, Row

# Kind -> its figures; the first is what scores are calibrated to, the second the one that says whether an answer is
# right, for McNemar's test. A kind that is not here has those of `answer`.
FIGURES: dict[str, tuple[str, ...]] = {
    "answer": ("vqa_accuracy", "exact_normalised", "exact", "anls", "token_f1"),
    "ocr": ("exact", "exact", "anls", "cer"),
    "caption": ("token_f1", "exact_normalised", "cider", "exact"),
    "describe": ("token_f1", "exact_normalised", "cider", "exact"),
}
EACH = {
    "exact": text.exact,
    "exact_normalised": text.exact_normalised,
    "vqa_accuracy": text.vqa_accuracy,
    "anls": text.anls,
    "token_f1": text.token_f1,
}


class Texts:
    """The figures of a task. Answers that are not ok count as wrong: 0, and for `cer` as empty."""

    level = "record"

    def __init__(self, kind: str, seed: int, frequencies: Frequencies | None) -> None:
        self._names = tuple(dict.fromkeys(FIGURES.get(kind, FIGURES["answer"])))
        self.target, self._right = FIGURES.get(kind, FIGURES["answer"])[:2]
        self._columns = ["rows", "ok", "invalid", "error", "edits", "characters", *self._names]
        self._sums = Sums(self._columns, seed)
        self._pair = Sums([f"{side}.{name}" for side in "ab" for name in self._columns], seed)
        self._frequencies = frequencies
        self.reliability, self.changes = Reliability(), Changes()
        self.unreadable = self.without_truth = 0
        self.problem = ""

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        known: list[tuple[Row, list[str]]] = []
        for row in rows:
            try:
                truths = [] if row.rejected else texts(row.given)
            except Unreadable as error:
                self.unreadable += 1
                self.problem = self.problem or f"{row.id}: {error}"
                continue
            if truths or row.rejected:
                known.append((row, truths))
            else:
                self.without_truth += 1
        if not known:
            return
        mine = self._values([(truths, row.answer) for row, truths in known])
        self._sums.add(mine)
        at, right = self._columns.index(self.target), self._columns.index(self._right)
        for (row, _), values in zip(known, mine, strict=True):
            if row.answer.score is not None and row.answer.score == row.answer.score:
                self.reliability.add(row.id, row.answer.score, float(values[at]))
        both = [number for number, (row, _) in enumerate(known) if row.other is not None]
        if both:
            pairs = [(known[number][1], other) for number in both if (other := known[number][0].other) is not None]
            theirs = self._values(pairs)
            self._pair.add(np.concatenate([mine[both], theirs], axis=1))
            for number, their in zip(both, theirs, strict=True):
                row = known[number][0]
                same = row.other is not None and (row.answer.status, text.plain(row.answer.said)) == (
                    row.other.status,
                    text.plain(row.other.said),
                )
                self.changes.add(row, same, float(mine[number][right]), float(their[right]))

    def _values(self, pairs: Sequence[tuple[list[str], Answer]]) -> Floats:
        """The columns of rows: [rows, columns]."""
        rarity: list[float] = []
        if self._frequencies is not None:
            found = [
                ([grams(tokens(truth)) for truth in truths], grams(tokens(answer.said))) for truths, answer in pairs
            ]
            wanted = [number for number, (truths, _) in enumerate(pairs) if truths]
            scores = dict(zip(wanted, self._frequencies.scores([found[number] for number in wanted]), strict=True))
            rarity = [scores.get(number, 0.0) for number in range(len(pairs))]
        rows = []
        for number, (truths, answer) in enumerate(pairs):
            is_ok = answer.status == "ok" and bool(truths)
            edits = text.edits(truths, answer.said) if truths else (0, 0)
            own = {"cer": 0.0, "cider": rarity[number] if rarity else 0.0}
            figures = [
                own[name] if name in own else EACH[name](truths, answer.said) if is_ok else 0.0 for name in self._names
            ]
            status = [float(answer.status == each) for each in ("ok", "invalid", "error")]
            rows.append([1.0, *status, *edits, *figures])
        return np.array(rows, np.float64)

    def counts(self) -> dict[str, int]:
        """Rows that were compared, by status."""
        names = {"evaluated": "rows", "ok": "ok", "invalid": "invalid", "errors": "error"}
        return {word: round(self._sums.total(name)) for word, name in names.items()}

    def figures(self) -> dict[str, dict[str, Any]]:
        """Each figure with its interval."""
        ratios = {name: self._sums.figure(*_ratio(name)) for name in self._names}
        return ratios | {f"{name}_rate": self._sums.figure(name, "rows") for name in ("invalid", "error")}

    def against(self) -> dict[str, Any]:
        """The other run's figures less this one's, over the rows that both have."""
        differences = {}
        for name in (*self._names, "invalid", "error"):
            over, under = _ratio(name)
            differences[name if name in self._names else f"{name}_rate"] = self._pair.paired(over, under)
        return {"differences": differences} | self.changes.found(self._right)


def _ratio(name: str) -> tuple[str, str]:
    """The columns whose ratio a figure is."""
    return ("edits", "characters") if name == "cer" else (name, "rows")


def needs_frequencies(kind: str) -> bool:
    """Whether a kind's figures need the frequencies of n-grams."""
    return "cider" in FIGURES.get(kind, ())


def frequencies_of(rows: Iterable[Sequence[Row]], frequencies: Frequencies) -> Frequencies:
    """Add the true captions of all rows, in batches."""
    for batch in rows:
        found: list[list[Counter[str]]] = []
        for row in batch:
            with contextlib.suppress(Unreadable):
                if not row.rejected and (truths := texts(row.given)):
                    found.append([grams(tokens(truth)) for truth in truths])
        frequencies.add(found)
    frequencies.settle()
    return frequencies
