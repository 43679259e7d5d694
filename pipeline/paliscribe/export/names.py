"""File names for ids, which may be any text."""

import hashlib
import re
from collections.abc import Iterable

MOST = 80  # characters of an id that are kept in a name
PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*")
MADE = re.compile(r".*-[0-9a-f]{16}")
RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")  # devices of Windows


def stem(row_id: str) -> str:
    """A file name without suffix for an id: the same one always, and another for each id on every file system.

    An id of lower-case letters, digits, `-` and `_` is its own name. Any other is shortened to such characters and
    upper case, followed by 64 bits of its hash: so file systems that ignore case or forms of Unicode keep ids apart,
    and slashes, dots and names of devices mean nothing.
    """
    is_plain = len(row_id) <= MOST and PLAIN.fullmatch(row_id) is not None
    if is_plain and not MADE.fullmatch(row_id) and not RESERVED.fullmatch(row_id):
        return row_id
    words = re.sub(r"[^A-Za-z0-9_]+", "_", row_id)[:MOST].strip("_") or "id"
    return f"{words}-{hashlib.sha256(row_id.encode()).hexdigest()[:16]}"


def free(name: str, taken: Iterable[str]) -> str:
    """The name of a further column: with `_` behind it while a column is called so, in whatever case."""
    lower = {each.lower() for each in taken}
    while name.lower() in lower:
        name += "_"
    return name
