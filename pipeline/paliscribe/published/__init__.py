"""Published runs read as SQL tables by DuckDB where they lie, and the marks of their reviewers."""

from paliscribe.published.marks import VERDICTS, Mark, delete_mark, mark_of, put_mark, read_marks
from paliscribe.published.tables import Tables, open_tables

__all__ = [
    "VERDICTS",
    "Mark",
    "Tables",
    "delete_mark",
    "mark_of",
    "open_tables",
    "put_mark",
    "read_marks",
]
