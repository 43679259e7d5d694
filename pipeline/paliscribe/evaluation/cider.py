"""CIDEr-D of captions (Vedantam et al. 2015) with document frequencies in a file, so that their number is no matter."""

import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.evaluation.spill import Spill

LONGEST, SIGMA, SCALE = 4, 6.0, 10.0  # words of an n-gram; of the penalty for another length; of the score
PART_BYTES = 2 * 2**20  # of n-grams that are added up together
BLOCK = 64  # n-grams of the sorted file that are read together
_WORD = re.compile(r"\w+(?:['’]\w+)*")

Grams = Mapping[str, int]


def tokens(text: str) -> list[str]:
    """The words of a caption: lower case, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def grams(words: Sequence[str]) -> Counter[str]:
    """The n-grams of 1 to 4 words, with their counts; words are joined by spaces."""
    return Counter(" ".join(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))


def _hash(gram: str) -> int:
    return hash(gram) & (2**62 - 1)


class Frequencies:
    """In how many rows an n-gram is in a true caption. Rows are added first, then the frequencies are read.

    N-grams are known by hashes of 62 bits. Those of one row are as rare as unknown ones, so only the others are kept:
    in a file of pairs of hash and number, sorted, of which blocks are read for the n-grams that are asked for.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: for temporary files."""
        self._rows = 0
        self._added = Spill(folder, pa.schema([("gram", pa.int64()), ("n", pa.int64())]), "gram")
        self._file = (folder / "frequencies").open("w+b", buffering=0)
        self._firsts = np.zeros(0, np.int64)  # of the blocks

    def add(self, rows: Iterable[Sequence[Grams]]) -> None:
        """Add rows, each as the n-grams of its true captions."""
        counts: Counter[str] = Counter()
        for truths in rows:
            counts.update(set().union(*truths))
            self._rows += 1
        columns = [list(map(_hash, counts)), list(counts.values())]
        self._added.add(pa.record_batch([pa.array(each, pa.int64()) for each in columns], schema=self._added.schema))

    def settle(self) -> None:
        """Add up what was added."""
        added = self._added.split(max(1, -(-self._added.size // PART_BYTES)))
        size, firsts = 0, []
        for part in range(added.buckets):
            gram, counts = (column.to_numpy() for column in added.table(part).columns)
            grams, places = np.unique(gram, return_inverse=True)
            sums = np.bincount(places, counts, len(grams)).astype(np.int64)
            pairs = np.stack([grams, sums], axis=1)[sums > 1]
            firsts.append(pairs[-size % BLOCK :: BLOCK, 0])
            size += len(pairs)
            self._file.write(pairs.tobytes())
        self._firsts = np.concatenate(firsts)

    def scores(self, rows: Sequence[tuple[Sequence[Grams], Grams]]) -> list[float]:
        """CIDEr-D of rows, 0 to 10: n-grams of the true captions and of the answer."""
        wanted = list(set().union(*(found for truths, answer in rows for found in (*truths, answer))))
        counts = self._counts(np.fromiter(map(_hash, wanted), np.int64, len(wanted)))
        known = zip(wanted, counts.tolist(), strict=True)
        rarity = {gram: math.log(self._rows) - math.log(count) for gram, count in known if self._rows}
        return [_score(truths, answer, rarity) for truths, answer in rows]

    def _counts(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """In how many rows the n-grams of these hashes are, [n]; 1 for those that are not kept."""
        blocks = np.unique(np.searchsorted(self._firsts, hashes, side="right")) - 1
        size = BLOCK * 16
        bodies = (os.pread(self._file.fileno(), size, block * size) for block in blocks.tolist() if block >= 0)
        pairs = np.frombuffer(b"".join(bodies), np.int64).reshape(-1, 2)
        if not len(pairs):
            return np.ones(len(hashes), np.int64)
        places = np.minimum(np.searchsorted(pairs[:, 0], hashes), len(pairs) - 1)
        return np.where(pairs[places, 0] == hashes, pairs[places, 1], 1)


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
