"""What the first rows of a manifest tell before it is read, so that a mistake is reported at once."""

from collections.abc import Sequence
from typing import Unpack

import pyarrow as pa

from paliscribe.manifest import formats
from paliscribe.manifest.blocks import Uncertain
from paliscribe.manifest.naming import ColumnSettings, Naming

FIXED = (".csv", ".tsv", ".parquet")  # formats whose rows all have the same columns


def fixed_columns(source: str | Sequence[str], **columns: Unpack[ColumnSettings]) -> list[str] | None:
    """The columns that a manifest carries, if its first rows tell: one CSV or Parquet file. Else None.

    Files are opened, but for those on web servers, which would send them twice. Raises UsageError if one is missing,
    unreadable or malformed in its first rows.
    """
    naming = Naming.of(**columns)
    if not isinstance(source, str):
        if len(source) == 1:
            return fixed_columns(source[0], **columns)
        for each in source:
            fixed_columns(each, **columns)
        return None
    if not formats.is_file(source) or source.startswith(("http://", "https://")):
        return None
    found, block = next(formats.blocks(source, naming), (None, None))
    if found is None or block is None or not formats.plain_name(source).endswith(FIXED):
        return None
    with found.translating():
        try:
            names = block.table().column_names
        except (Uncertain, pa.ArrowException):
            names = list(next(block.rows(), {}))
    return [name for each in names if (name := naming.carried(each)) is not None] or None
