"""The matches of all images, in DuckDB, which writes to disk what is too much; read by label, highest score first."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paliscribe.evaluation.matching import AREAS, Bits, Matched
from paliscribe.published.tables import database

ROWS = 16_384  # that are inserted and read together
MEMORY, PER_ROW = 24, 4e-6  # MB of DuckDB, and for each row: it sorts parts of what fits, and merges all at once
_COLUMNS = ("label INTEGER", "image BIGINT", "score DOUBLE", "first UBIGINT", "second UBIGINT")


@dataclass(frozen=True, slots=True)
class Part:
    """Some shapes of a label, [n] of them. All true ones of a label come before the found ones.

    `image`: [n]. `true`: numbers of true shapes in that image, [n, areas]; None: the shapes are found ones. `matched`,
    `ignored`: of found ones, [n, areas], a bit for each threshold.
    """

    label: int
    image: npt.NDArray[np.int64]
    true: npt.NDArray[np.int32] | None
    matched: Bits
    ignored: Bits


class Collected:
    """The matches of all images. `images`, `found`, `labels`: numbers of images and found shapes so far, their labels.

    A row for each found shape, and one with an infinite score for the true shapes of a label in an image. `first` and
    `second` are `matched` and `ignored` of the one, and the numbers of the other, as 64 bits each.
    """

    def __init__(self) -> None:
        self.images = self.found = 0
        self.labels: set[int] = set()
        self._connection = database(MEMORY)
        self._connection.execute(f"CREATE TABLE matched ({', '.join(_COLUMNS)})")
        self._waiting: list[tuple[int, Matched]] = []
        self._rows = self._inserted = 0

    def add(self, matches: Sequence[Matched]) -> None:
        """Add the matches of the next image."""
        self._waiting += [(self.images, each) for each in matches]
        found = sum(len(each.scores) for each in matches)
        self.labels.update(each.label for each in matches)
        self.images, self.found, self._rows = self.images + 1, self.found + found, self._rows + found + len(matches)
        if self._rows >= ROWS:
            self._insert()

    def _insert(self) -> None:
        if self._waiting:
            parts = [each for _, each in self._waiting]
            sizes = [len(each.scores) for each in parts]
            labels = np.array([each.label for each in parts], np.int32)
            images = np.array([image for image, _ in self._waiting], np.int64)
            true = np.stack([each.true for each in parts]).astype(np.int32).view(np.uint64)
            first, second = (
                np.ascontiguousarray(np.concatenate(each)).view(np.uint64)[:, 0]
                for each in ([part.matched.T for part in parts], [part.ignored.T for part in parts])
            )
            columns = {
                "label": np.concatenate([labels, np.repeat(labels, sizes)]),
                "image": np.concatenate([images, np.repeat(images, sizes)]),
                "score": np.concatenate([np.full(len(parts), np.inf), *(each.scores for each in parts)]),
                "first": np.concatenate([true[:, 0], first]),
                "second": np.concatenate([true[:, 1], second]),
            }
            self._connection.register("_arriving", pa.table(columns))
            self._connection.execute("INSERT INTO matched SELECT * FROM _arriving")
            self._connection.unregister("_arriving")
            self._inserted += self._rows
        self._waiting, self._rows = [], 0

    def parts(self) -> Iterator[Part]:
        """All that was added, by label; of equal scores the first image's comes first. Can be read once."""
        self._insert()
        self._connection.execute(f"SET memory_limit = '{MEMORY + round(PER_ROW * self._inserted)}MB'")
        reader = self._connection.sql("SELECT * FROM matched ORDER BY label, score DESC, rowid").to_arrow_reader(ROWS)
        for batch in reader:
            label, image, score, first, second = (column.to_numpy() for column in batch.columns)
            is_true = np.isinf(score)
            ends = np.flatnonzero((np.diff(label) != 0) | (np.diff(is_true) != 0)) + 1
            for start, end in itertools.pairwise((0, *ends.tolist(), len(label))):
                pair = np.stack([first[start:end], second[start:end]], axis=1)
                true = pair.view(np.int32) if is_true[start] else None
                matched, ignored = (np.ascontiguousarray(each[start:end]).view(np.uint16) for each in (first, second))
                shape = (end - start, len(AREAS))
                yield Part(int(label[start]), image[start:end], true, matched.reshape(shape), ignored.reshape(shape))
        self._connection.close()
