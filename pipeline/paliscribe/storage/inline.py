"""Inline images: data URLs (RFC 2397), base64 only."""

import base64
import binascii
import re
from typing import Final

from paliscribe.errors import RowError

DATA: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.-]+)*(?P<base64>;base64)?,", re.ASCII)


def is_inline(address: str) -> bool:
    """Whether an address is a data URL, well-formed or not."""
    return address[:5].lower() == "data:"


def decoded(url: str) -> bytes:
    """The bytes of a data URL. Raises RowError `bad_uri` or `not_an_image`."""
    head = DATA.match(url)
    if head is None or not head["base64"]:
        raise RowError("bad_uri", "not a data URL of the form data:image/png;base64,...")
    if head["type"] is not None and not head["type"].lower().startswith(("image/", "application/octet-stream")):
        raise RowError("not_an_image", f"the data URL has the type {head['type']}, not an image type")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RowError("bad_uri", "the data URL is not valid base64") from None


def shortened(address: str) -> str:
    """The address as results show it: data URLs without their data."""
    if not is_inline(address):
        return address
    head = DATA.match(address)
    return f"{head[0] if head else 'data:'}..."
