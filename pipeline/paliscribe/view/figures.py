"""What a run's plots show, counted by DuckDB over the published files, in memory that does not grow.

Each figure may be that of a part of the records: `Figures` takes a condition in SQL over the columns of
`results.schema`, which the tables of annotations and of dead letters share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from paliscribe.published import Tables
from paliscribe.published.query import mistakes
from paliscribe.view import plots

BINS: Final = 20
TOP: Final = 15  # groups that have a bar of their own
MOST_TASKS: Final = 200
LABEL: Final = 300  # characters of a label that are read
SIZES: Final = [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """Counts of one task. `records` = `ok` + `invalid` + `errors`. `score`, `tokens`: means; None without answers."""

    task: str
    kind: str
    ok: int
    invalid: int
    errors: int
    score: float | None
    tokens: float | None

    @property
    def records(self) -> int:
        """All records, of which `invalid_rate` and `error_rate` are shares."""
        return self.ok + self.invalid + self.errors

    @property
    def invalid_rate(self) -> float:
        """Share of invalid answers."""
        return self.invalid / max(1, self.records)

    @property
    def error_rate(self) -> float:
        """Share of dead letters."""
        return self.errors / max(1, self.records)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values: `edges` has one value more than `counts`. `more`: the last count has what is above, too."""

    edges: list[float]
    counts: list[int]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """The largest groups with their counts, largest first, and the count of all others together."""

    counts: list[tuple[str, int]]
    others: int = 0


class Figures:
    """Figures over a run, or over a part of it. Not thread-safe: one for each connection."""

    def __init__(
        self,
        tables: Tables,
        where: str = "true",
        values: Sequence[Any] = (),
        *,
        connection: duckdb.DuckDBPyConnection | None = None,
    ) -> None:
        """`where`: a condition in SQL with `?` for each of `values`. `connection`: None: that of the tables.

        The methods raise UsageError, in one line, for a mistake in the condition.
        """
        self._connection, self._prefix = connection or tables.connection, tables.prefix
        self._where, self._values = where, list(values)

    def tasks(self) -> list[TaskFigures]:
        """The counts of each task, in the order of their names, of the first `MOST_TASKS`."""
        both = " UNION ALL BY NAME ".join(f"FROM {self._prefix}{table}" for table in ("annotations", "errors"))
        rows = self._rows(
            "SELECT task, any_value(kind), count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'invalid'), "
            f"count(*) FILTER (status = 'error'), avg(score), avg(tokens) FROM ({both}) WHERE ({self._where}) "
            f"GROUP BY task ORDER BY task LIMIT {MOST_TASKS}"
        )
        return [TaskFigures(task or "", kind or "", *more) for task, kind, *more in rows]

    def scores(self) -> Histogram:
        """Answers by their score, from 0 to 1."""
        counts = self._counted(f"least(greatest(floor(score * {BINS}), 0), {BINS - 1})", BINS, "score IS NOT NULL")
        return Histogram([edge / BINS for edge in range(BINS + 1)], counts)

    def labels(self, top: int = TOP) -> Groups:
        """Boxes by their label."""
        return self._grouped(f"SELECT unnest(boxes).label AS name FROM {self._part('annotations')}", top)

    def error_kinds(self, top: int = TOP) -> Groups:
        """Dead letters by their kind."""
        return self._grouped(f"SELECT error_kind AS name FROM {self._part('errors')}", top)

    def box_sizes(self) -> Histogram:
        """Boxes by the side of a square of their size, as a share of that of the image."""
        inner = f"SELECT unnest(boxes) AS b, width, height FROM {self._part('annotations')}"
        side = "sqrt(greatest(b.x_max - b.x_min, 0) * greatest(b.y_max - b.y_min, 0) / (width * height))"
        steps = ", ".join(map(str, SIZES[1:-1]))
        counts = self._counted(f"len(list_filter([{steps}], lambda s: s <= {side}))", len(SIZES) - 1, inner=inner)
        return Histogram(list(SIZES), counts)

    def box_counts(self) -> Histogram:
        """Answers of tasks that find boxes by their number of boxes."""
        tasks = "kind IN ('detect', 'segment') OR len(boxes) > 0"
        return self._whole_numbers("len(boxes)", tasks)

    def text_lengths(self) -> Histogram:
        """Answers without boxes by their length in characters."""
        return self._whole_numbers("length(text)", "text IS NOT NULL AND coalesce(len(boxes), 0) = 0")

    def _whole_numbers(self, expression: str, condition: str) -> Histogram:
        """Counts of whole numbers from 0 on, in bins of equal width; the last one has the largest hundredth too."""
        part = f"(SELECT coalesce({expression}, 0) AS n FROM {self._part('annotations')} WHERE {condition})"
        [(high, most)] = self._rows(f"SELECT approx_quantile(n, 0.99), max(n) FROM {part}")
        if most is None:
            return Histogram([0, 1], [0])
        top = int(most) if most < BINS else max(int(high), BINS - 1)
        step = -(-(top + 1) // BINS)
        bins = -(-(top + 1) // step)
        counts = self._counted(f"least(n // {step}, {bins - 1})", bins, inner=f"SELECT n FROM {part}")
        return Histogram([float(step * edge) for edge in range(bins + 1)], counts, more=most >= bins * step)

    def _counted(self, number: str, bins: int, condition: str = "true", inner: str = "") -> list[int]:
        """How often an expression has each of the values 0 to bins - 1."""
        inner = inner or f"SELECT * FROM {self._part('annotations')}"
        rows = self._rows(f"SELECT ({number})::INT AS bin, count(*) FROM ({inner}) WHERE {condition} GROUP BY bin")
        found = dict(rows)
        return [found.get(number, 0) for number in range(bins)]

    def _grouped(self, inner: str, top: int) -> Groups:
        name = f"left(coalesce(name, ''), {LABEL})"
        rows = self._rows(
            f"SELECT {name}, count(*) AS n, sum(n) OVER () FROM ({inner}) GROUP BY 1 ORDER BY n DESC, 1 LIMIT {top}"
        )
        others = int(rows[0][2]) - sum(count for _, count, _ in rows) if rows else 0
        return Groups([(label, count) for label, count, _ in rows], others)

    def _part(self, table: str) -> str:
        return f"(SELECT * FROM {self._prefix}{table} WHERE ({self._where}))"

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement that has the condition in it once."""
        with mistakes():
            return self._connection.execute(sql, self._values).fetchall()


def drawn(figures: Figures) -> dict[str, str]:
    """The plots of a run or of a part of it, each as SVG: name -> picture, without those that have nothing to show."""
    scores, sizes = figures.scores(), figures.box_sizes()
    numbers, lengths = figures.box_counts(), figures.text_lengths()
    labels, kinds = figures.labels(), figures.error_kinds()
    size = "side, as a share of the image's"
    found = {
        "scores": plots.histogram("Scores", scores.edges, scores.counts, x="score"),
        "labels": plots.bars("Boxes by label", labels.counts, others=labels.others),
        "box-counts": _whole("Boxes in an answer", numbers, "boxes"),
        "box-sizes": plots.histogram("Sizes of boxes", sizes.edges, sizes.counts, x=size, percent=True),
        "text-lengths": _whole("Lengths of texts", lengths, "characters"),
        "errors": plots.bars("Dead letters by kind", kinds.counts, others=kinds.others),
    }
    totals = [sum(each.counts) for each in (scores, numbers, sizes, lengths)]
    is_shown = [totals[0], len(labels.counts), *totals[1:], len(kinds.counts)]
    return {name: picture for (name, picture), shown in zip(found.items(), is_shown, strict=True) if shown}


def _whole(title: str, found: Histogram, x: str) -> str:
    return plots.histogram(title, found.edges, found.counts, x=x, more=found.more, whole=True)
