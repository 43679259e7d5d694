"""JSON Lines and CSV: a line for each answer, with all columns of the results."""

from collections.abc import Callable, Mapping
from typing import Any

from paliscribe.export.base import Format, Run
from paliscribe.export.names import free
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.published.query import csv_cell, csv_line, json_line


class AnswerLines:
    """Writes one file of lines. `head`: of the column names. `line`: of the values by column."""

    def __init__(
        self, target: Target, run: Run, name: str, head: Callable[[list[str]], str], line: Callable[..., str]
    ) -> None:
        columns = list(run.schema.names)
        self._review = free("review", columns)
        self._file = free("file", columns) if run.images else None
        self._lines, self._line = target.lines(name), line
        self._lines.write(head([*columns, *filter(None, (self._review, self._file))]))

    def add(self, picture: Picture) -> None:
        """See Writer."""
        for answer in picture.answers:
            more: dict[str, Any] = {self._review: answer.review}
            if self._file is not None:
                more[self._file] = picture.file
            self._lines.write(self._line({**answer.record, **more}))

    def close(self) -> None:
        """See Writer."""
        self._lines.close()


def _jsonl(target: Target, run: Run) -> AnswerLines:
    return AnswerLines(target, run, "annotations.jsonl", lambda names: "", lambda values: f"{json_line(values)}\n")


def _csv(target: Target, run: Run) -> AnswerLines:
    def line(values: Mapping[str, Any]) -> str:
        return f"{csv_line([csv_cell(value) for value in values.values()])}\n"

    return AnswerLines(target, run, "annotations.csv", lambda names: f"{csv_line(names)}\n", line)


JSONL = Format("`annotations.jsonl`: an answer a line, all columns, `review`", "anything", _jsonl)
CSV = Format("`annotations.csv`: an answer a line, all columns, `review`; boxes and masks as JSON", "anything", _csv)
