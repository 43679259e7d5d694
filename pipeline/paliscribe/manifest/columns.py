"""The rows of a block by columns: ids, images and carried columns as a frozen manifest holds them."""

import datetime
import decimal
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import SPACE, Block, Uncertain
from paliscribe.results.schema import NAMES
from paliscribe.storage import resolve, scheme
from paliscribe.storage.inline import START

ID, IMAGE = "id", "image"  # columns of a normalised table; carried columns have other names


@dataclass(frozen=True, slots=True)
class Names:
    """What a manifest's columns are: the names of two, and the folder that relative images are in."""

    image: str
    id: str
    folder: str

    @property
    def taken(self) -> frozenset[str]:
        """Names that a carried column cannot have."""
        return NAMES - {self.image, self.id}


def normalised(block: Block, names: Names) -> tuple[pa.Table, list[str]]:
    """The rows of a block by columns, and the names of its columns as they are in the manifest.

    Columns: `id`, null where there is no text to use; `image`, an address or null; the carried columns that have
    values, as bool, int64, float64 or string, sorted by name. Raises Uncertain if the block must be read by rows.
    """
    try:
        found = block.table()
        found.validate(full=True)  # UTF-8 among others
        columns = {name: _flat(column) for name, column in zip(found.column_names, found.columns, strict=True)}
        absent = pa.nulls(found.num_rows, pa.string())
        reference = _texts(columns.pop(names.image, absent))
        given = _texts(columns.pop(names.id, absent))
        if names.taken & columns.keys():
            raise Uncertain
        values = {ID: given, IMAGE: resolved(reference, names.folder)}
        values[ID] = pc.coalesce(given, pc.if_else(_is_inline(reference), None, reference))
        for name in sorted(columns):
            if (carried := _plain_column(columns[name])) is not None:
                values[name] = carried
        return pa.table(values), found.column_names
    except (pa.ArrowException, UsageError, ValueError):
        raise Uncertain from None


def resolved(references: pa.Array, folder: str) -> pa.Array:
    """Absolute addresses of images: see `storage.resolve`."""
    absolute = pc.or_(pc.match_substring(references, "://"), pc.starts_with(references, "/"))
    absolute = pc.or_(absolute, pc.starts_with(references, "file:/", ignore_case=True))
    absolute = pc.or_(absolute, _is_inline(references))
    if pc.all(absolute, skip_nulls=True, min_count=0).as_py():
        return references
    if scheme(folder) and pc.any(pc.match_substring_regex(references, r"(^|/)\.\.?/")).as_py():
        return pa.array([None if ref is None else resolve(ref, folder) for ref in references.to_pylist()], pa.string())
    whole = resolve("x", folder).removesuffix("x")
    relative = references if scheme(folder) else pc.replace_substring_regex(references, r"^\./", "")
    return pc.if_else(absolute, references, pc.binary_join_element_wise(whole, relative, ""))


def plain(value: Any) -> bool | int | float | str | None:
    """A carried value as bool, int, float, str or None. Raises ValueError, which says what it is."""
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("does not fit into 64 bits")
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    raise ValueError(f"holds {type(value).__name__} values, which are not supported; remove the column")


def text_of(value: Any) -> str | None:
    """A value of the id or image column as text, without space around it; None for null, NaN and empty text."""
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, in Arrow's plain type for its kind of value."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    elif pa.types.is_integer(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    array = column.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _texts(column: pa.Array) -> pa.Array:
    """`text_of` for a column."""
    if pa.types.is_null(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim(column, characters=SPACE)
        return pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    if pa.types.is_floating(column.type):
        raise Uncertain  # 1 and 1.0 are different texts in JSON, and the same float
    return pa.array(map(text_of, column.to_pylist()), pa.string())


def _plain_column(column: pa.Array) -> pa.Array | None:
    """`plain` for a column; None if it has no values."""
    if column.null_count == len(column):
        return None
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind) or pa.types.is_boolean(kind):
        return column
    return pa.array(map(plain, column.to_pylist()), pa.string())


def _is_inline(references: pa.Array) -> pa.Array:
    return pc.match_substring_regex(references, START, ignore_case=True)
