"""CIDEr-D of captions (Vedantam et al. 2015) with document frequencies in DuckDB, so that their number is no matter."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import duckdb
import pyarrow as pa

LONGEST, SIGMA, SCALE = 4, 6.0, 10.0  # words of an n-gram; of the penalty for another length; of the score
_WORD = re.compile(r"\w+(?:['’]\w+)*")

Grams = Mapping[str, int]


def tokens(text: str) -> list[str]:
    """The words of a caption: lower case, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def grams(words: Sequence[str]) -> Counter[str]:
    """The n-grams of 1 to 4 words, with their counts; words are joined by spaces."""
    return Counter(" ".join(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))


class Frequencies:
    """In how many rows an n-gram is in a true caption. Rows are added first, then the frequencies are read."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection, self._rows = connection.cursor(), 0
        self._connection.execute("CREATE OR REPLACE TABLE _added (gram VARCHAR, n BIGINT)")

    def add(self, rows: Iterable[Sequence[Grams]]) -> None:
        """Add rows, each as the n-grams of its true captions."""
        counts: Counter[str] = Counter()
        for truths in rows:
            counts.update(set().union(*truths))
            self._rows += 1
        self._connection.register("_batch", pa.table({"gram": list(counts), "n": list(counts.values())}))
        self._connection.execute("INSERT INTO _added SELECT * FROM _batch")

    def settle(self) -> None:
        """Add up what was added."""
        self._connection.execute(
            "CREATE OR REPLACE TABLE _frequencies AS SELECT gram, sum(n)::BIGINT AS n FROM _added GROUP BY gram"
        )
        self._connection.execute("DROP TABLE _added")

    def scores(self, rows: Sequence[tuple[Sequence[Grams], Grams]]) -> list[float]:
        """CIDEr-D of rows, 0 to 10: n-grams of the true captions and of the answer."""
        wanted = set().union(*(found for truths, answer in rows for found in (*truths, answer)))
        self._connection.register("_batch", pa.table({"gram": pa.array(sorted(wanted), pa.string())}))
        found = self._connection.execute("SELECT gram, n FROM _frequencies JOIN _batch USING (gram)").fetchall()
        rarity = dict.fromkeys(wanted, math.log(self._rows)) if self._rows else {}
        rarity |= {gram: math.log(self._rows) - math.log(max(1, n)) for gram, n in found}
        return [_score(truths, answer, rarity) for truths, answer in rows]


def _score(truths: Sequence[Grams], answer: Grams, rarity: Mapping[str, float]) -> float:
    said = _vector(answer, rarity)
    return SCALE * sum(_similarity(said, _vector(truth, rarity)) for truth in truths) / (LONGEST * len(truths))


class _Vector:
    """The weights of a caption's n-grams by their length, the norms of these, and the number of pairs of words."""

    def __init__(self) -> None:
        self.weights: list[dict[str, float]] = [{} for _ in range(LONGEST)]
        self.norms: list[float] = []
        self.length = 0


def _vector(found: Grams, rarity: Mapping[str, float]) -> _Vector:
    vector = _Vector()
    for gram, count in found.items():
        n = gram.count(" ")
        vector.weights[n][gram] = count * rarity[gram]
        vector.length += count if n == 1 else 0
    vector.norms = [math.sqrt(sum(value * value for value in weights.values())) for weights in vector.weights]
    return vector


def _similarity(said: _Vector, true: _Vector) -> float:
    """The sum over the lengths of n-grams of the clipped cosine, less for another length of the caption."""
    penalty = math.exp(-((said.length - true.length) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for mine, theirs, norm, other in zip(said.weights, true.weights, said.norms, true.norms, strict=True):
        if norm and other:
            total += sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items()) / (
                norm * other
            )
    return total * penalty
