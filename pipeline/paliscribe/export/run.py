"""An export from beginning to end."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from paliscribe.errors import RunError, UsageError, did_you_mean
from paliscribe.export.base import Format, Run
from paliscribe.export.copying import Copies
from paliscribe.export.pictures import BOX_KINDS, Picture
from paliscribe.export.registry import FORMATS
from paliscribe.export.selecting import Filters, Selection, labels
from paliscribe.export.target import Target
from paliscribe.published import open_tables
from paliscribe.storage import StorageError
from paliscribe.storage.arrow import frugal

MEMORY = 256  # MB, of DuckDB


@frugal()
def export(output: str, form: str, to: str, filters: Filters | None = None, *, images: bool = False) -> dict[str, Any]:
    """Write a run's annotations to an empty folder or prefix `to`, in the format `form` of `registry.FORMATS`.

    `images`: copy the pictures too. Returns counts: `pictures`, `answers`, `boxes`; `left_out` of what, in words;
    `failed_images` and the first of them in `named`. Raises UsageError for what is wrong before anything is written,
    and RunError if a store fails.
    """
    found = FORMATS.get(form)
    if found is None:
        words = f"--format: {form[:50]!r} is unknown{did_you_mean(form, FORMATS)}; known are {', '.join(FORMATS)}"
        raise UsageError(words)
    filters = filters or Filters()
    if filters.min_score is not None and not 0 <= filters.min_score <= 1:
        raise UsageError(f"--min-score: {filters.min_score} is not in 0 to 1")
    tables = open_tables(output, memory=MEMORY, whole=False)
    selection = Selection(tables, filters, boxes=found.boxes, name=form)
    [(model, revision)] = tables.connection.execute("SELECT model, revision FROM runs").fetchall()
    run = Run(output, model or "", revision or "", selection.tasks, labels(tables), tables.schema, images)
    counts: Counter[str] = Counter()
    try:
        with Target(to, tables.store) as target:
            copies = Copies(target, tables.store, found.folder) if images else None
            writer = found.writer(target, run)
            pictures = _measured(selection, found)
            for picture in copies.of(pictures) if copies else pictures:
                writer.add(picture)
                counts["pictures"] += 1
                counts["answers"] += len(picture.answers)
                counts["boxes"] += sum(len(answer.regions) for answer in picture.answers)
            writer.close()
            if copies:
                copies.close()
            target.finish()
    except StorageError as error:
        raise RunError(str(error)) from None
    return {
        "format": form,
        "to": target.uri,
        **{name: counts[name] for name in ("pictures", "answers", "boxes")},
        "left_out": dict(sorted(selection.left_out.items())),
        "finished": tables.finished,
        "failed_images": copies.failed if copies else 0,
        "named": copies.named if copies else [],
    }


def _measured(selection: Selection, form: Format) -> Iterator[Picture]:
    """The pictures that have answers, and a size where boxes need one."""
    for picture in selection.pictures():
        has_boxes = any(answer.kind in BOX_KINDS for answer in picture.answers)
        if not picture.answers:
            continue
        if not (picture.width and picture.height) and (form.boxes or has_boxes):
            selection.left_out["pictures without a size"] += 1
            continue
        yield picture
