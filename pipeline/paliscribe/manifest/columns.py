"""The rows of a block by columns: ids, images and carried columns as a frozen manifest holds them."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from paliscribe.errors import UsageError
from paliscribe.manifest.blocks import SPACE, Block, Columns, Uncertain
from paliscribe.manifest.kinds import Kinds, converted, kind_of_column
from paliscribe.manifest.naming import Naming
from paliscribe.manifest.values import BASE64, PRINTED, holds_no_text, plain, python_values, text_of
from paliscribe.storage import is_text, resolve, scheme
from paliscribe.storage.inline import START

ID, IMAGE = "id", "image"  # columns of a normalised table; carried columns have other names


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a manifest, normalised.

    `table`: `id`, null where there is no text to use; `image`, an address or null; the carried columns that have
    values, as bool, int64, float64 or string, sorted by name. `columns`: of the manifest, by their own names, with
    their types, null if they are not known. `kinds`: of the values of the carried columns. `nested`: those of the
    carried columns in which there are lists or structs, which are JSON text.
    """

    table: pa.Table
    columns: Mapping[str, pa.DataType]
    kinds: Mapping[str, Kinds]
    nested: frozenset[str]


def normalised(block: Block, naming: Naming, folder: str, types: Mapping[str, pa.DataType]) -> Part:
    """The rows of a block by columns. `folder`: of relative images. `types`: of carried columns, where not natural.

    Raises Uncertain if the block must be read by rows.
    """
    try:
        found = block.table()
        found.validate(full=True)  # UTF-8 among others
        columns = {name: _flat(column) for name, column in zip(found.column_names, found.columns, strict=True)}
        absent = pa.nulls(found.num_rows, pa.string())
        reference = _texts(columns.get(naming.image, absent))
        if pc.any(pc.match_substring_regex(reference, f"{BASE64}|{PRINTED}")).as_py():
            raise Uncertain
        given = absent if naming.id in naming.dropped else _texts(columns.get(naming.id, absent))
        default = pc.if_else(_is_inline(reference), None, reference)
        if isinstance(block, Columns) and block.ids is not None:
            default = pc.coalesce(block.ids, default)
        values = {ID: pc.coalesce(given, default)}
        values[IMAGE] = resolved(reference, folder)
        kinds: dict[str, Kinds] = {}
        nested: set[str] = set()
        outer = {carried: name for name in columns if (carried := naming.carried(name)) is not None}
        for name in sorted(outer):
            column = _plain_column(columns[outer[name]])
            if column is None:
                continue
            kinds[name] = Kinds({kind_of_column(column)})
            values[name] = converted(column, types[name] if name in types else _natural(column.type))
            if pa.types.is_nested(columns[outer[name]].type):
                nested.add(name)
        return Part(pa.table(values), {field.name: field.type for field in found.schema}, kinds, frozenset(nested))
    except (pa.ArrowException, UsageError, ValueError, OverflowError):
        raise Uncertain from None


def resolved(references: pa.Array, folder: str) -> pa.Array:
    """Absolute addresses of images: see `storage.resolve`."""
    absolute = pc.or_(pc.match_substring(references, "://"), pc.starts_with(references, "/"))
    absolute = pc.or_(absolute, pc.starts_with(references, "file:/", ignore_case=True))
    absolute = pc.or_(absolute, _is_inline(references))
    if pc.all(absolute, skip_nulls=True, min_count=0).as_py():
        return references
    has_dots = scheme(folder) and pc.any(pc.match_substring_regex(references, r"(^|/)\.\.?/")).as_py()
    if has_dots or not is_text(folder):
        return pa.array([None if ref is None else resolve(ref, folder) for ref in references.to_pylist()], pa.string())
    whole = resolve("x", folder).removesuffix("x")
    relative = references if scheme(folder) else pc.replace_substring_regex(references, r"^\./", "")
    return pc.if_else(absolute, references, pc.binary_join_element_wise(whole, relative, ""))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array, in Arrow's plain type for its kind of value."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
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
    if holds_no_text(column.type):
        raise Uncertain
    return pa.array(map(text_of, python_values(column)), pa.string())


def _plain_column(column: pa.Array) -> pa.Array | None:
    """`plain` for a column, in which uint64 is left if a value needs it; None if it has no values."""
    if column.null_count == len(column):
        return None
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_int64(kind) or pa.types.is_float64(kind) or pa.types.is_boolean(kind):
        return column
    if pa.types.is_uint64(kind):
        return column if pc.max(column).as_py() >= 2**63 else column.cast(pa.int64())
    return pa.array(map(plain, python_values(column)), pa.string())


def _natural(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_uint64(kind) else kind


def _is_inline(references: pa.Array) -> pa.Array:
    return pc.match_substring_regex(references, START, ignore_case=True)
