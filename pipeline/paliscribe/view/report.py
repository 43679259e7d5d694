"""The report of a run: one file of HTML that loads nothing, written as it is made, in constant memory."""

import json
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from itertools import islice
from typing import Any, Final

from paliscribe.config import FetchConfig
from paliscribe.published import Tables
from paliscribe.results.run_file import RunFile
from paliscribe.storage import StorageError
from paliscribe.view import cards, plots
from paliscribe.view.embedded import Pictures, colouring
from paliscribe.view.figures import Figures, TaskFigures, drawn
from paliscribe.view.samples import Examples, Found, Samples

EVALUATION: Final = "_evaluation/latest.json"
EVALUATION_BYTES: Final = 4 * 2**20
CURVES: Final = 40  # plots of an evaluation at most
LOWEST, EXAMPLES = 12, 3  # pictures with the lowest scores; of each kind of error


def report(
    tables: Tables, *, samples: int, seed: int, tell: Callable[[int], None] = lambda pictures: None
) -> Iterator[str]:
    """The report of a run, in pieces of HTML. Images are read only if the run could read them.

    `samples`: rows that are shown as a sample, which follows from `seed`. `tell`: gets the number of pictures so far.
    Raises UsageError if the published files cannot be read.
    """
    figures, found = Figures(tables), Samples(tables, seed)
    tasks = figures.tasks()
    css = files("paliscribe.view").joinpath("report.css").read_text(encoding="utf-8")
    yield cards.head(f"Report of {tables.output}", css, [plots.STYLE])
    yield from _summary(tables, tasks)
    yield from _evaluation(tables)
    yield '<h2>Figures</h2>\n<div class="plots">\n'
    yield from (f"<div>{plot}</div>\n" for plot in drawn(figures).values())
    yield "</div>\n"
    labels = [label for label, _ in figures.labels().counts]
    writer = _Pictures(Pictures(_settings(tables)), colouring(labels), tell)
    if samples:
        ids = found.ids(samples, len(tasks))
        yield f'<h2>A sample</h2>\n<p class="quiet">{len(ids):,} rows, chosen by seed {seed}</p>\n'
        yield from writer.cards(found.rows(ids))
    if lowest := found.records(found.lowest(min(LOWEST, samples))):
        yield "<h2>The lowest scores</h2>\n"
        yield from writer.cards([record] for record in lowest)
    for title, groups in (("Invalid answers", found.invalid(EXAMPLES)), ("Dead letters", found.errors(EXAMPLES))):
        yield from _groups(title, groups, found, writer)
    yield "</body></html>\n"


class _Pictures:
    """Writes pictures, and counts them."""

    def __init__(self, pictures: Pictures, colour: Callable[[str], int], tell: Callable[[int], None]) -> None:
        self._pictures, self._colour, self._tell, self._count = pictures, colour, tell, 0

    def cards(self, groups: Iterable[list[Found]]) -> Iterator[str]:
        yield '<div class="cards">\n'
        for records, picture in self._pictures.of(groups):
            yield cards.card(records, picture, self._colour)
            self._count += 1
            self._tell(self._count)
        yield "</div>\n"


def _groups(title: str, groups: list[Examples], found: Samples, writer: _Pictures) -> Iterator[str]:
    """Each kind of what went wrong, with examples."""
    if groups:
        yield f"<h2>{title}</h2>\n"
    for group in groups:
        examples = found.records(group.keys)
        yield f"<h3><bdi>{plots.escaped(group.name[:200])}</bdi>: {group.count:,}</h3>\n"
        yield from writer.cards([record] for record in examples)


def _summary(tables: Tables, tasks: list[TaskFigures]) -> Iterator[str]:
    [run] = tables.connection.sql(f"SELECT * FROM {tables.prefix}runs").to_arrow_table().to_pylist()
    ok, invalid, errors = (sum(getattr(task, name) for task in tasks) for name in ("ok", "invalid", "errors"))
    yield f"<h1>Report of <bdi>{plots.escaped(tables.output)}</bdi></h1>\n"
    if not tables.finished:
        yield '<p class="bad">The run is not finished: this is what is published so far.</p>\n'
    quantized = run["quantization"] not in (None, "none")
    facts: dict[str, Any] = {
        "rows": run["rows"],
        "records": ok + invalid + errors,
        "ok": ok,
        "invalid": invalid,
        "dead letters": errors,
        "model": run["model"],
        "revision": run["revision"],
        "precision": f"{run['precision']}, {run['quantization']}" if quantized else run["precision"],
        "retries": run["retries"],
        "appends": run["appends"] or None,
    }
    yield "<h2>Summary</h2>\n"
    yield cards.table([], [(name, value) for name, value in facts.items() if value is not None])
    heads = ["task", "kind", "records", "ok", "invalid", "invalid rate", "dead letters", "error rate"]
    rows = [
        [
            *(each.task, each.kind, each.records, each.ok, each.invalid, cards.percent(each.invalid_rate)),
            *(each.errors, cards.percent(each.error_rate), each.score, each.tokens),
        ]
        for each in tasks
    ]
    yield "<h2>Tasks</h2>\n"
    yield cards.table([*heads, "mean score", "mean tokens"], rows)


def _evaluation(tables: Tables) -> Iterator[str]:
    """The figures that `paliscribe evaluate` has left beside the run, if it has."""
    try:
        body = tables.store.get(EVALUATION, max_bytes=EVALUATION_BYTES)
        found = json.loads(body)
    except StorageError as error:
        if error.kind != "missing":
            yield f'<h2>Evaluation</h2>\n<p class="bad">{plots.escaped(str(error))}</p>\n'
        return
    except (ValueError, RecursionError):
        yield f'<h2>Evaluation</h2>\n<p class="bad">{EVALUATION} is not JSON</p>\n'
        return
    yield "<h2>Evaluation</h2>\n"
    yield cards.figures_of(found)
    yield '<div class="plots">\n'
    for name, points in islice(cards.curves_of(found), CURVES):
        yield f"<div>{plots.reliability(name, points)}</div>\n"
    yield "</div>\n"


def _settings(tables: Tables) -> FetchConfig:
    """How the run reads its images."""
    file = RunFile.read(tables.store)
    return file.job.fetch if file is not None else FetchConfig()
