"""Blocks of JSON Lines and of text lists."""

import json
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import SPACE, Block, Lines, Row, Source, Uncertain, chunks, line_ends
from paliscribe.storage import redacted

EXACT = 2.0**63  # JSON integers from here on are an error, which their value as a float does not show


class JsonLines(Lines):
    """JSON Lines. Values keep their types; nested values become JSON text."""

    def table(self) -> pa.Table:
        """See Block."""
        data = self.data.rstrip()
        self.checkline_ends()
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
                    raise Uncertain
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
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UsageError(f"manifest {redacted(self.source.uri)}, line {number}: not a JSON object")
            yield {
                key: json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value
                for key, value in row.items()
            }


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
        self.checkline_ends()
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
    yield from (JsonLines(source, data, line) for data, line in _whole_lines(source))


def text_lines(source: Source) -> Iterator[Block]:
    """The blocks of a text list."""
    yield from (TextLines(source, data, line) for data, line in _whole_lines(source))


def _whole_lines(source: Source) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a file, some `BLOCK` bytes at a time, and the number of lines before them."""
    line, rest = 0, b""
    with source.open() as file:
        for chunk in chunks(file):
            cut = chunk.rfind(b"\n") + 1
            if cut == 0:
                rest += chunk
                continue
            data, rest = rest + chunk[:cut], chunk[cut:]
            yield data, line
            line += line_ends(data)
        if rest:
            yield rest, line
