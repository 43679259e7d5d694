"""Two runs over the same rows: what changed, and whether one is better by more than chance."""

import math
from typing import Any

from paliscribe.evaluation.bootstrap import rounded
from paliscribe.evaluation.joined import Answer, Row

MOST = 1000  # changed rows that are kept as examples


class Changes:
    """Rows that two runs answer differently, and rows that only one of them answers rightly."""

    def __init__(self) -> None:
        self.rows, self.same, self.better, self.worse = 0, 0, 0, 0
        self.examples: list[dict[str, Any]] = []

    def add(self, row: Row, same: bool, mine: float, theirs: float) -> None:
        """Add a row that both have. `mine`, `theirs`: 1 for a right answer, else 0."""
        self.rows += 1
        self.same += same
        self.better += theirs > mine
        self.worse += theirs < mine
        if not same and len(self.examples) < MOST and row.other is not None:
            self.examples.append({"id": row.id, "before": _shown(row.answer), "after": _shown(row.other)})

    def found(self, right: str | None) -> dict[str, Any]:
        """What was found. `right`: the figure that says whether an answer is right; None: there is none."""
        result: dict[str, Any] = {
            "rows": self.rows,
            "changed": self.rows - self.same,
            "agreement": rounded(self.same / self.rows) if self.rows else None,
            "changed_rows": self.examples,
        }
        if right is not None:
            p = rounded(mcnemar(self.better, self.worse))
            result["mcnemar"] = {"of": right, "better": self.better, "worse": self.worse, "p": p}
        return result


def _shown(answer: Answer) -> dict[str, Any]:
    return {"status": answer.status, "text": answer.text}


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact test, two-sided: how likely so uneven a split of the rows that differ is by chance."""
    count, least = better + worse, min(better, worse)
    if not count:
        return 1.0
    whole = math.lgamma(count + 1) - count * math.log(2)
    terms = (math.exp(whole - math.lgamma(k + 1) - math.lgamma(count - k + 1)) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(terms))
