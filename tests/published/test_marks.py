"""Marks of reviewers, one object for each annotation."""

from pathlib import Path

import pytest

from paliscribe.errors import UsageError
from paliscribe.published import Mark, delete_mark, mark_of, put_mark, read_marks
from paliscribe.storage import open_store

BOX = {"label": "cat", "x_min": 1.0, "y_min": 2.0, "x_max": 3.5, "y_max": 4.0, "score": None}


def test_the_last_mark_of_an_annotation_counts(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    marks = [
        Mark("a/b é", "caption en", "accept", marked_at=1.0),
        Mark("a/b é", "detect cat ; dog", "fix", boxes=[BOX], note="moved"),
        Mark("x" * 3000, "ocr", "reject", source="label-studio"),
    ]
    put_mark(store, Mark("a/b é", "caption en", "reject"))
    for mark in marks:
        put_mark(store, mark)
    assert sorted(read_marks(store), key=lambda mark: mark.task) == marks
    assert mark_of(store, "a/b é", "detect cat ; dog") == marks[1]
    delete_mark(store, "a/b é", "caption en")
    delete_mark(store, "a/b é", "caption en")
    assert mark_of(store, "a/b é", "caption en") is None
    assert len(list(read_marks(store))) == 2


def test_ids_and_tasks_do_not_run_together(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    put_mark(store, Mark("a", "b c", "accept"))
    assert mark_of(store, "a b", "c") is None


def test_what_is_no_mark(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(UsageError, match="accept, reject, fix"):
        put_mark(store, Mark("a", "b", "maybe"))  # type: ignore[arg-type]
    assert not list(read_marks(store))
    store.put("_review/abc.json", b"{")
    with pytest.raises(UsageError, match="is no review mark"):
        list(read_marks(store))
