"""Marks of reviewers: accept, reject or fix, one object for each reviewed annotation, below `_review/` of the output.

A mark belongs to an id and a task, not to a file or row of one, so it stays with its annotation through retries and
appends. Two reviewers of one annotation overwrite each other: the last mark counts.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from paliscribe.errors import UsageError
from paliscribe.results.schema import BOX
from paliscribe.storage import StorageError, Store
from paliscribe.storage.parallel import in_order

FOLDER = "_review"
Verdict = Literal["accept", "reject", "fix"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("verdict", pa.string()),
        ("text", pa.string()),
        ("boxes", pa.list_(pa.field("element", BOX))),
        ("note", pa.string()),
        ("source", pa.string()),
        ("marked_at", pa.timestamp("ms", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a reviewer said of the annotation of an id under a task.

    `verdict`: accept: it is right; reject: it is wrong; fix: it is wrong, and `text` or `boxes` is the right answer.
    `boxes`: dicts with the keys of `results.schema.BOX`, in pixels of the upright original image; None: not corrected.
    `source`: where the mark was made, as `view` or `label-studio`. `marked_at`: seconds since 1970.
    """

    id: str
    task: str
    verdict: Verdict
    text: str | None = None
    boxes: Sequence[dict[str, Any]] | None = None
    note: str | None = None
    source: str = "view"
    marked_at: float = 0.0


def put_mark(store: Store, mark: Mark) -> None:
    """Write a mark; it replaces the one that there was. Raises UsageError for an unknown verdict, and StorageError."""
    if mark.verdict not in VERDICTS:
        raise UsageError(f"review: {mark.verdict!r} is no verdict; known are {', '.join(VERDICTS)}")
    store.put(_key(mark.id, mark.task), json.dumps(asdict(mark), ensure_ascii=False).encode())


def delete_mark(store: Store, row_id: str, task: str) -> None:
    """Delete the mark of an annotation; none there is no error. Raises StorageError."""
    store.delete(_key(row_id, task))


def mark_of(store: Store, row_id: str, task: str) -> Mark | None:
    """The mark of an annotation, or None. Raises StorageError."""
    try:
        return Mark(**json.loads(store.get(_key(row_id, task))))
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise


def read_marks(store: Store) -> Iterator[Mark]:
    """All marks of an output. Raises StorageError, and UsageError for an object that is no mark."""
    for key, body in in_order(lambda key: (key, store.get(key)), _keys(store)):
        try:
            yield Mark(**json.loads(body))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{store.uri}/{key} is no review mark ({error}); delete it") from None


def marks_table(store: Store) -> pa.Table:
    """All marks as a table of `SCHEMA`. Raises as `read_marks`."""
    rows = [asdict(mark) | {"marked_at": round(mark.marked_at * 1000)} for mark in read_marks(store)]
    return (
        pa.Table.from_pylist(rows, SCHEMA) if rows else pa.Table.from_batches([], SCHEMA)
    )  # the former imports pandas


def _keys(store: Store) -> list[str]:
    return [found.key for found in store.list(f"{FOLDER}/") if found.key.endswith(".json")]


def _key(row_id: str, task: str) -> str:
    """Key of a mark: ids and tasks may be any text, and long."""
    return f"{FOLDER}/{hashlib.sha256(json.dumps([row_id, task]).encode()).hexdigest()[:32]}.json"
