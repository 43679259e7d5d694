"""Inline images: data URLs (RFC 2397), in all spellings that clients write."""

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

from paliscribe.errors import RowError

HEAD: Final = re.compile(r"""\s*["'<]?\s*data:((?:[^,"]|"[^"]*"){0,1000}),""", re.IGNORECASE)
QUOTES: Final = "\"'<> \t\r\n"  # around an address
START: Final = r"""^["'<> \t\r\n]{0,5}data:"""
TYPES: Final = ("image/", "application/octet-stream", "binary/octet-stream")
ALPHABET: Final = str.maketrans("-_", "+/", " \t\r\n\v\f")  # URL-safe base64 to the plain one, without white space


def is_inline(address: str) -> bool:
    """Whether an address is a data URL, well-formed or not."""
    return re.match(START, address, re.IGNORECASE) is not None


def decoded(url: str) -> bytes:
    """The bytes of a data URL. Raises RowError `bad_uri` or `not_an_image`."""
    head = HEAD.match(url)
    kind, *parameters = unquote(head[1]).split(";") if head is not None else [""]
    is_base64 = any(word.strip().lower() == "base64" for word in parameters)
    if head is None or not (is_base64 or "%" in url[head.end() :]):
        raise RowError("bad_uri", "not a data URL of the form data:image/png;base64,...")
    if kind.strip() and not kind.strip().lower().startswith(TYPES):
        raise RowError("not_an_image", f"the data URL has the type {kind.strip()[:100]}, not an image type")
    body = url[head.end() :]
    if not is_base64:
        return unquote_to_bytes(body.rstrip(QUOTES))
    try:
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            plain = unquote(body).rstrip(QUOTES).translate(ALPHABET).rstrip("=")
            return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise RowError("bad_uri", "the data URL is not valid base64") from None


def shortened(address: str) -> str:
    """The address as results show it: data URLs without their data."""
    if not is_inline(address):
        return address
    head = HEAD.match(address)
    return f"{head[0].lstrip(QUOTES)[:100] if head else 'data:'}..."
