"""Evaluates a run against its truth, task by task, and keeps the figures beside it."""

import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from paliscribe.errors import RunError, UsageError
from paliscribe.evaluation.bootstrap import LEVEL
from paliscribe.evaluation.calibration import ScoreMap, write_maps
from paliscribe.evaluation.cider import Frequencies
from paliscribe.evaluation.given import Given
from paliscribe.evaluation.joined import Joined, units
from paliscribe.evaluation.shapes import Shapes, has_masks, labels_asked
from paliscribe.evaluation.texts import Texts, frequencies_of, needs_frequencies
from paliscribe.evaluation.truth import RUN, Truth, load_truth
from paliscribe.manifest.messages import quoted
from paliscribe.published import Tables, open_tables
from paliscribe.published.query import mistakes
from paliscribe.storage import StorageError, Store, redacted
from paliscribe.storage.arrow import frugal

KEY = "_evaluation/latest.json"
OTHER = "other_"  # before the names of the other run's tables
MASK_BATCHES = 20  # of rows that are searched for masks
MEMORY = 24  # MB, of DuckDB
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing temporary files

Evaluated = Texts | Shapes


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is evaluated.

    `truth`, `columns`, `id_column`: see `truth.load_truth`. `against`: another output. `least`: score from which
    precision and recall of boxes are measured. `fit`: keep maps from score to probability. `seed`: of the intervals.
    `memory`: MB that DuckDB may take.
    """

    truth: str = RUN
    columns: Mapping[str, str] = field(default_factory=dict)
    id_column: str = "id"
    against: str | None = None
    least: float = 0.0
    fit: bool = False
    seed: int = 0
    memory: int = MEMORY


@mistakes("evaluate")
def evaluate(output: str, options: Options, tell: Callable[[str], None] = lambda words: None) -> dict[str, Any]:
    """The figures of a run as plain values, which are also kept in `_evaluation/latest.json` of the output.

    `tell`: gets a line about what is done. Raises UsageError: nothing published, truth that cannot be read or has
    nothing for any task, no row in common, an output that cannot be written, too little memory; RunError: no room for
    temporary files.
    """
    tables = open_tables(output, memory=options.memory, rows=False, whole=False)
    found = units(tables)
    other = None
    if options.against is not None:
        other = open_tables(options.against, tables.connection, prefix=OTHER, rows=False)
    try:
        with frugal(), tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
            truth, tasks, maps = figures(tables, found, options, Path(folder), other, tell)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        words = f"{os.strerror(error.errno).lower()}; set TMPDIR to a folder with more room"
        raise RunError(f"evaluate: temporary files in {tempfile.gettempdir()}: {words}") from None
    result = {
        "output": output,
        "truth": redacted(options.truth),
        "against": options.against,
        "finished": tables.finished,
        "evaluated_at": round(time.time()),
        "interval": LEVEL,
        "seed": options.seed,
        "tasks": tasks,
        "without_column": sorted({task for task, _ in found} - truth.columns.keys()),
        "notes": truth.notes,
    }
    _keep(tables.store, result, maps if options.fit else None)
    return result


def figures(
    tables: Tables,
    units: Sequence[tuple[str, str]],
    options: Options,
    folder: Path,
    other: Tables | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> tuple[Truth, list[dict[str, Any]], dict[tuple[str, str], ScoreMap]]:
    """The truth, the figures of tasks and kinds, and their maps from score to probability.

    `units`: pairs of task and kind, by task. `folder`: for temporary files. Raises as `evaluate`.
    """
    given = Given(folder / "truth")
    tell(f"reading truth from {redacted(options.truth)}")
    truth = load_truth(tables, options.truth, units, given, options.columns, options.id_column)
    maps: dict[tuple[str, str], ScoreMap] = {}
    found: list[dict[str, Any]] = []
    for task, pairs in groupby(units, key=lambda unit: unit[0]):
        if task in truth.columns:
            tell(f"evaluating {task}")
            kinds = [kind for _, kind in pairs]
            with tempfile.TemporaryDirectory(dir=folder) as own:
                rows = Joined(tables, other, task, kinds, given.take(task), Path(own))
                for kind in kinds:
                    found += _of_kind(tables, truth, rows, task, kind, options, maps, Path(own))
    if not any(each["rows"]["evaluated"] for each in found):
        raise UsageError(f"truth {redacted(options.truth)}: {_nothing(tables, given, found)}")
    return truth, found, maps


def read_evaluation(store: Store) -> dict[str, Any] | None:
    """The figures that were last kept beside a run, as `evaluate` returned them; None if there are none.

    Raises StorageError, and UsageError for an object that holds none.
    """
    try:
        found: dict[str, Any] = json.loads(store.get(KEY))
        return found
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    except ValueError:
        raise UsageError(f"{store.uri}/{KEY} is no evaluation; run evaluate again") from None


def _keep(store: Store, result: Mapping[str, Any], maps: Mapping[tuple[str, str], ScoreMap] | None) -> None:
    try:
        if maps is not None:
            write_maps(store, maps)
        store.put(KEY, json.dumps(result, ensure_ascii=False, allow_nan=False).encode())
    except StorageError as error:
        raise UsageError(f"the figures cannot be kept beside the run: {error}") from None


def _of_kind(
    tables: Tables,
    truth: Truth,
    rows: Joined,
    task: str,
    kind: str,
    options: Options,
    maps: dict[tuple[str, str], ScoreMap],
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """The figures of a task's records of a kind; of `segment` those of boxes, and of masks if both sides have any."""
    notes: list[str] = []
    evaluated: list[tuple[str, Evaluated]] = []
    if kind in ("detect", "segment"):
        by_prompt = any(map(labels_asked, rows.of(kind)))
        if not by_prompt:
            notes.append("no truth has a label that its prompt asks for, so all labels are compared")
        evaluated.append(("boxes", Shapes("box", options.seed, options.least, by_prompt)))
        if kind == "segment" and any(map(has_masks, islice(rows.of(kind), MASK_BATCHES))):
            evaluated.append(("masks", Shapes("mask", options.seed, options.least, by_prompt)))
    else:
        rare = None
        if needs_frequencies(kind):
            rare = frequencies_of(rows.of(kind), Frequencies(folder / f"grams-{kind}"))
        evaluated.append(("text", Texts(kind, options.seed, rare)))
    for batch in rows.of(kind):
        for _, each in evaluated:
            each.add(batch)
    coverage = rows.coverage(kind)
    for what, each in evaluated:
        if options.fit and what != "masks" and (fitted := each.reliability.fit(each.target, each.level)) is not None:
            maps[task, kind] = fitted
        found: dict[str, Any] = {"task": task, "kind": kind, "of": what, "column": truth.columns[task]}
        found["rows"] = each.counts() | _left_out(coverage, each)
        found["notes"] = notes + _notes(each)
        if found["rows"]["evaluated"]:
            found["figures"] = each.figures()
            found["calibration"] = each.reliability.found(each.target, each.level)
            if isinstance(each, Shapes):
                found["labels"] = each.labels()
            if options.against is not None:
                found["against"] = each.against()
        yield found


def _left_out(counts: Mapping[str, int], each: Evaluated) -> dict[str, int]:
    """Rows that are not compared, by reason."""
    without = counts["without_truth"] + each.without_truth
    return {**counts, "without_truth": without, "unreadable": each.unreadable}


def _notes(each: Evaluated) -> list[str]:
    notes = []
    if each.unreadable:
        notes.append(f"{each.unreadable:,} true answers cannot be read; the first is {each.problem}")
    if isinstance(each, Shapes) and each.not_asked:
        notes.append(
            f"{each.not_asked:,} found ones have labels that their prompts do not ask for; they count as wrong"
        )
    return notes


def _nothing(tables: Tables, given: Given, tasks: Sequence[Mapping[str, Any]]) -> str:
    """Why no row was compared."""
    if problem := next((note for each in tasks for note in each["notes"] if "cannot be read" in note), None):
        return str(problem)
    if given.first is None:
        return "no row has a true answer"
    [(mine,)] = tables.connection.execute("SELECT min(id) FROM annotations").fetchall()
    return f"no id is one of the run's: the run has {quoted(mine)}, the truth {quoted(given.first)}"
