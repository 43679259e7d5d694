"""PBM, PGM and PPM files, in a form that Pillow reads fast: it reads comments and unusual depths byte by byte."""

import math
import re
from typing import Final

import numpy as np

GAP: Final = rb"(?:\s++|#[^\r\n]*+(?:[\r\n]|\Z))++"
HEAD: Final = re.compile(rb"P([1-6])" + GAP + rb"(\d{1,10})" + GAP + rb"(\d{1,10})", re.ASCII)
DEPTH: Final = re.compile(GAP + rb"(\d{1,5})", re.ASCII)
LONG: Final = 1000  # bytes of a header, above which comments are removed
COMMENT: Final = re.compile(rb"#[^\r\n]*+")


def pixels(data: bytes) -> float:
    """Width times height; infinite for text and for a header that is not short and simple."""
    head = HEAD.match(data, 0, LONG)
    return float(int(head[2]) * int(head[3])) if head is not None and head[1] in b"456" else math.inf


def plain(data: bytes) -> bytes:
    """The same picture without comments and, if it is binary, with eight bits. Other data is returned as it is."""
    head = HEAD.match(data)
    if head is None:
        return data
    kind, width, height = head[1], int(head[2]), int(head[3])
    end, depth = head.end(), 0
    if kind not in b"14":
        found = DEPTH.match(data, end)
        if found is None:
            return data
        end, depth = found.end(), int(found[1])
    if kind in b"456" and depth in (0, 255) and end <= LONG:
        return data
    body = data[end + 1 :]
    if kind in b"123":
        body = COMMENT.sub(b"", body)
    elif 0 < depth < 65536:
        body, depth = _eight_bits(body, depth, width * height * (3 if kind == b"6" else 1)), 255
    sizes = b"%d %d %d" % (width, height, depth) if depth else b"%d %d" % (width, height)
    return b"P%b\n%b\n%b" % (kind, sizes, body)


def _eight_bits(body: bytes, depth: int, samples: int) -> bytes:
    """Samples of 0..depth, one or two bytes each, as samples of 0..255."""
    kind = np.dtype(">u2" if depth > 255 else np.uint8)
    values = np.frombuffer(body, kind, min(samples, len(body) // kind.itemsize))
    table = np.rint(np.minimum(np.arange(65536) / depth, 1) * 255).astype(np.uint8)
    return bytes(table[values])
