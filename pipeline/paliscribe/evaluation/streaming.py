"""Reads the members of a large JSON object one by one: the elements of its arrays, and its other values whole."""

import json
from collections.abc import Iterator
from typing import Any, TextIO

from paliscribe.errors import UsageError

PIECE = 1 << 20
LONGEST = 1 << 28  # characters of one element at most
SPACE = " \t\r\n"


def members(text: TextIO, name: str) -> Iterator[tuple[str, Any]]:
    """Pairs of a key and an element of its array, or of a key and its value; of an empty array None.

    `name`: of the file, in messages. Raises UsageError for text that is no JSON object.
    """
    scan = _Scan(text, name)
    scan.expect("{")
    while scan.peek() != "}":
        key = scan.value()
        scan.expect(":")
        if scan.peek() != "[":
            yield key, scan.value()
        else:
            scan.expect("[")
            if scan.peek() == "]":
                yield key, None
            while scan.peek() != "]":
                yield key, scan.value()
                if scan.peek() == ",":
                    scan.expect(",")
            scan.expect("]")
        if scan.peek() == ",":
            scan.expect(",")


class _Scan:
    """A place in a text that is read in pieces."""

    def __init__(self, text: TextIO, name: str) -> None:
        self._text, self._name, self._decoder = text, name, json.JSONDecoder()
        self._buffer, self._at = "", 0

    def peek(self) -> str:
        """The next character that is no white space. Raises UsageError at the end."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in SPACE:
                self._at += 1
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more(PIECE):
                raise self._error("it ends too soon")

    def expect(self, mark: str) -> None:
        """Go past a mark. Raises UsageError if it is not there."""
        if self.peek() != mark:
            raise self._error(f"{mark!r} is expected before {self._buffer[self._at : self._at + 20]!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value. Raises UsageError if there is none."""
        self.peek()
        piece = PIECE
        while True:
            try:
                found, end = self._decoder.raw_decode(self._buffer, self._at)
                if end < len(self._buffer):  # a number may go on in the next piece
                    self._at = end
                    return found
            except ValueError as error:
                problem = str(error)
            else:
                problem = "it ends too soon"
            if len(self._buffer) - self._at > LONGEST or not self._more(piece):
                raise self._error(problem)
            piece *= 2

    def _more(self, size: int) -> bool:
        read = self._text.read(size)
        self._buffer, self._at = self._buffer[self._at :] + read, 0
        return bool(read)

    def _error(self, words: str) -> UsageError:
        return UsageError(f"truth {self._name}: no JSON object as COCO's: {words}")
