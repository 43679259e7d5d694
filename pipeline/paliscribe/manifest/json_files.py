"""Files named `.json`: COCO's, an array of objects, or JSON Lines."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import LONGEST, Block, Source, pieces, whole_lines
from paliscribe.manifest.coco import coco_images, other_json
from paliscribe.manifest.lines import JsonLines, json_lines
from paliscribe.storage import redacted

LOOK = 1 << 16  # bytes by which the kind is told
BLANK, BEGIN = re.compile(rb"[^ \t\r\n]"), re.compile(rb'["{}\[\],\r\n]')
IN_STRING = re.compile(rb'["\\]')


def json_file(source: Source) -> Iterator[Block]:
    """The blocks of a `.json` file, by what it holds. Raises UsageError as their readers do."""
    start = _start(source)
    if start.startswith(b"["):
        yield from json_array(source)
    elif _is_lines(start):
        yield from json_lines(source)
    elif start.startswith(b"{"):
        yield from coco_images(source)
    else:
        raise other_json(source)


def holds_rows(source: Source) -> bool:
    """Whether a `.json` file is an array, or JSON Lines. Raises StorageError."""
    start = _start(source)
    return start.startswith(b"[") or _is_lines(start)


def _start(source: Source) -> bytes:
    with source.open() as file:
        return file.read(LOOK).removeprefix(b"\xef\xbb\xbf").lstrip()


def _is_lines(start: bytes) -> bool:
    """Whether the first line is an object by itself, and not all that COCO has."""
    first, end, _ = start.partition(b"\n")
    try:
        row = json.loads(first) if end else None
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not isinstance(row.get("images"), list)


class Elements(JsonLines):
    """Objects of an array, one a line."""

    holds = "the array holds one for each row"


def json_array(source: Source) -> Iterator[Block]:
    """The blocks of an array of objects. Raises UsageError if it does not end, or is not all."""
    source = replace(source, unit="object")
    with source.open() as file:
        offset, found = pieces(file)
        skipped, found = _first_element(found)
        for lines in whole_lines(source, _Array(source).lines(found), 0, offset + skipped):
            yield Elements(source, lines.data, lines.line, lines.offset)


def _first_element(found: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
    """The bytes before the first element, which are left out, and those from there on."""
    start = b""
    for piece in found:
        start += piece
        if len(after := start.lstrip()) > 1 and (after := after[1:].lstrip()):
            return len(start) - len(after), chain([after], found)
        if len(start) > LONGEST:
            break
    return len(start), iter(())


class _Array:
    """Turns the text of an array, from its first element on, into a line for each element, of the same length.

    What separates elements becomes spaces and one line end, and so does a line end within an element a space, but for
    those in strings, where JSON has none. It only follows strings and brackets: what a line holds is for its reader.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._depth = source, 1
        self._in_string = self._is_escaped = self._has_ended = False

    def lines(self, found: Iterator[bytes]) -> Iterator[bytes]:
        """The text in pieces. Raises UsageError if the array does not end, or if something follows it."""
        held = b""  # the end of what came, from a comma on, after which the next element has not begun
        for piece in found:
            data = bytearray(held + piece)
            comma = self._convert(data, len(held), 0 if held else None)
            yield bytes(data[:comma])
            held = b"" if comma is None else bytes(data[comma:])
            if len(held) > LONGEST:
                break
        if not self._has_ended:
            raise UsageError(f"manifest {redacted(self._source.uri)}: the array does not end; is the file cut off?")

    def _convert(self, data: bytearray, at: int, comma: int | None) -> int | None:
        """Convert data in place from a position on; returns where a comma is after which no element has begun."""
        while True:
            if comma is not None or self._has_ended:
                if (blank := BLANK.search(data, at)) is None:
                    return comma
                if self._has_ended:
                    raise UsageError(f"manifest {redacted(self._source.uri)}: there is text after the array")
                at = blank.start()
                data[comma:at] = b" " * (at - 1 - (comma or 0)) + b"\n"
                comma = None
            if self._is_escaped and at < len(data):
                self._is_escaped, at = False, at + 1
            mark = (IN_STRING if self._in_string else BEGIN).search(data, at)
            if mark is None:
                return None
            at, sign = mark.end(), mark[0]
            if self._in_string:
                self._in_string, self._is_escaped = sign != b'"', sign == b"\\"
            elif sign == b'"':
                self._in_string = True
            elif sign in b"{[":
                self._depth += 1
            elif sign in b"}]":
                self._depth -= 1
                if not self._depth:
                    self._has_ended, data[at - 1] = True, ord(" ")
            elif sign in b"\r\n":
                data[at - 1] = ord(" ")
            elif self._depth == 1:
                comma = at - 1
