"""Folders, prefixes and patterns: the objects in them that are images or manifests, and what is left out."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from paliscribe.storage import Store, is_local, is_text, local_address, open_store, split
from paliscribe.storage.base import ObjectInfo

# Names of the formats that `images.decode` reads; a test compares them with those of its decoders.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".avif", ".avifs"),
)
OPTIONAL = {"pillow_heif": (".heic", ".heics", ".heif", ".heifs", ".hif"), "pillow_jxl": (".jxl",)}  # by library
SYSTEM = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})  # folders of other programs
MOST = 5  # kinds of files left out that are named


class Listing:
    """The objects below an address, without hidden ones. `left_out`: how many were passed over, by kind."""

    def __init__(self, manifest: str) -> None:
        """`manifest`: a folder, a prefix, or a pattern in which `*` stands for any text without a slash, `**` for any
        text, `**/` for any folders. Raises StorageError.
        """
        start, star, _ = manifest.partition("*")
        folder = start[: start.rfind("/") + 1] if star else manifest
        self.store: Store = open_store(folder or ".")
        self.left_out: Counter[str] = Counter()
        self._prefix = start[len(folder) :] if star else ""
        self._pattern = _pattern(manifest[len(folder) :]) if star else None
        self._shows_hidden = star != "" and any(map(is_hidden, manifest[len(folder) :].split("/")))

    def items(self) -> Iterator[ObjectInfo]:
        """The objects, ordered by key."""
        for item in self.store.list(self._prefix):
            if self._pattern is not None and not self._pattern.fullmatch(item.key):
                continue
            if not self._shows_hidden and any(map(is_hidden, item.key.split("/"))):
                self.left_out["hidden"] += 1
            else:
                yield item

    def skip(self, item: ObjectInfo) -> None:
        """Count an object that is not used."""
        self.left_out[kind_of_name(item.key)] += 1

    def address(self, key: str) -> str:
        """The absolute address of an object. It is text also for a local name that is not."""
        uri = "/".join(split(f"{self.store.uri.rstrip('/')}/{key}"))
        return local_address(uri) if is_local(uri) else uri

    def words(self) -> str | None:
        """What is left out; None if nothing is."""
        return left_out(self.left_out)


def left_out(counts: Counter[str]) -> str | None:
    """What is left out, in words; None if nothing is."""
    if not counts:
        return None
    kinds = counts.most_common(MOST)
    rest = counts.total() - sum(count for _, count in kinds)
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    return f"left out: {named}" + (f" and {rest:,} more" if rest else "")


def kind_of_name(key: str) -> str:
    """What an object that is not used is counted as."""
    name = key.rpartition("/")[2]
    return f".{name.rpartition('.')[2].lower()[:10]}" if "." in name else "without a suffix"


@cache
def suffixes() -> tuple[str, ...]:
    """The names of the formats that are read here: `IMAGES`, and those whose library is installed."""
    return IMAGES + tuple(name for library, names in OPTIONAL.items() if find_spec(library) for name in names)


def is_image(key: str) -> bool:
    """Whether an object's name is that of an image."""
    return key.lower().endswith(suffixes())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to another program."""
    return (name.startswith(".") and name not in (".", "..")) or name in SYSTEM


def as_text(key: str) -> str:
    r"""A name as text, with bytes that are none as `\xe9`."""
    return key if is_text(key) else key.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _pattern(text: str) -> re.Pattern[str]:
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", text)
    return re.compile("".join(words.get(word) or re.escape(word) for word in parts), re.DOTALL)
