"""Blocks of JSON Lines and of text lists."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import SPACE, Block, Lines, Row, Source, Uncertain, pieces, whole_lines
from paliscribe.manifest.kinds import EXACT
from paliscribe.manifest.messages import quoted


class JsonLines(Lines):
    """JSON Lines. Values keep their types."""

    holds = "each line holds one"  # object

    def table(self) -> pa.Table:
        """See Block."""
        data = self.data.rstrip()
        self.check_line_ends()
        if not data.startswith(b"{") or re.search(rb"\n[^{]", data):
            raise Uncertain  # a blank line, or an object that is not on a line of its own
        found = _parsed(data, [])
        if dates := [field.name for field in found.schema if pa.types.is_temporal(field.type)]:
            found = _parsed(data, dates)  # Arrow takes text such as 2024-02-29 for a date
        if found.num_rows != data.count(b"\n") + 1:
            raise Uncertain
        for field, column in zip(found.schema, found.columns, strict=True):
            if pa.types.is_float64(field.type):
                if not pc.all(pc.less(pc.abs(column), EXACT)).as_py():
                    raise Uncertain  # there may be a whole number that lost digits
            elif not (
                pa.types.is_string(field.type)
                or pa.types.is_int64(field.type)
                or pa.types.is_boolean(field.type)
                or pa.types.is_null(field.type)
            ):
                raise Uncertain
        return found

    def rows(self) -> Iterator[Row]:
        """See Block."""
        for number, line in enumerate(self.text(), start=self.line + 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_Object)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, _Object):
                raise UsageError(f"{self.source.at(number)}: not a JSON object; {self.holds}")
            if row.twice is not None:
                raise UsageError(f"{self.source.at(number)}: the key {quoted(row.twice)} is there twice")
            yield row


class _Object(dict[str, Any]):
    """A JSON object. `twice`: a key that it has twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(self) < len(pairs):
            self.twice = Counter(key for key, _ in pairs).most_common(1)[0][0]


def _parsed(data: bytes, strings: list[str]) -> pa.Table:
    return pa.json.read_json(
        pa.BufferReader(data),
        read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pa.json.ParseOptions(explicit_schema=pa.schema([(name, pa.string()) for name in strings])),
    )


class TextLines(Lines):
    """A text list: one image a line."""

    def table(self) -> pa.Table:
        """See Block."""
        self.check_line_ends()
        lines = pc.split_pattern(pa.array([self.data], pa.string()), "\n").flatten()
        lines.validate(full=True)
        lines = pc.utf8_trim(lines, characters=SPACE)
        return pa.table({self.source.image_column: lines.filter(pc.not_equal(lines, ""))})

    def rows(self) -> Iterator[Row]:
        """See Block."""
        for line in self.text():
            if image := line.strip():
                yield {self.source.image_column: image}


def json_lines(source: Source) -> Iterator[Block]:
    """The blocks of a JSON Lines file."""
    with source.open() as file:
        offset, found = pieces(file)
        for lines in whole_lines(source, found, 0, offset):
            yield JsonLines(source, lines.data, lines.line, lines.offset)


def text_lines(source: Source) -> Iterator[Block]:
    """The blocks of a text list."""
    with source.open() as file:
        offset, found = pieces(file)
        for lines in whole_lines(source, found, 0, offset):
            yield TextLines(source, lines.data, lines.line, lines.offset)
