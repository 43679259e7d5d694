"""Stores manifests passed as tables or rows with the run, so that resumes and retries can read them."""

import base64
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from paliscribe.errors import UsageError
from paliscribe.storage import StorageError, open_store, scheme
from paliscribe.storage.inline import is_inline
from paliscribe.storage.parquet import BYTES, PATH, image_bytes, image_leaf

GIVEN = "_run/given"
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


class ArrowStream(Protocol):
    """A table of pyarrow, pandas, polars, DuckDB or another Arrow library."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """See the Arrow PyCapsule interface."""


Manifest = str | Path | ArrowStream | Iterable[Mapping[str, Any]] | Sequence[str | Path]


def manifest_addresses(manifest: Manifest, output: str, image_column: str) -> tuple[str, ...]:
    """The addresses of a manifest. A table or rows are first written into the output, named by their content hash.

    Raises UsageError for other types, and if the output cannot be written.
    """
    if isinstance(manifest, str | os.PathLike):
        return (os.fspath(manifest),)
    if isinstance(manifest, Sequence) and manifest and all(isinstance(each, str | os.PathLike) for each in manifest):
        return tuple(os.fspath(each) for each in manifest)
    with tempfile.TemporaryDirectory(prefix="paliscribe-") as folder:
        file = Path(folder) / "manifest"
        if hasattr(manifest, "__arrow_c_stream__"):
            ending = "parquet"
            pq.write_table(_absolute(_table(manifest, image_column), image_column), file)
        elif isinstance(manifest, Iterable) and not isinstance(manifest, bytes | Mapping):
            ending = "jsonl"
            with file.open("w", encoding="utf-8") as lines:
                lines.writelines(_lines(manifest, image_column))
        else:
            kind = type(manifest).__name__
            raise UsageError(f"manifest: expected a path, a table or an iterable of rows (dicts), not {kind}")
        with file.open("rb") as body:
            name = f"{GIVEN}/{hashlib.file_digest(body, 'sha256').hexdigest()[:16]}.{ending}"
        try:
            store = open_store(output)
            if not store.exists(name):  # a file that is written anew is another version, for images that are in it
                store.put_file(name, file)
        except StorageError as error:
            raise UsageError(f"output {error}") from None
        return (f"{store.uri.rstrip('/')}/{name}",)


def _table(manifest: Any, image_column: str) -> pa.Table:
    """A table with PIL images as PNG. Raises UsageError for values that Arrow has no type for."""
    try:
        table = pa.table(_with_encoded_images(manifest, image_column))
        fields = [field.with_type(_without_views(field.type)) for field in table.schema]
        table = table.cast(pa.schema(fields))
    except (pa.ArrowException, TypeError, ValueError) as error:
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"manifest: the table has values that Arrow cannot take: {words}") from None
    index = [name for name in table.column_names if name.startswith("__index_level_")]  # from pandas
    return table.drop_columns(index).replace_schema_metadata(None)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """A type with plain bytes and texts: polars gives views, which are not read as images."""
    if pa.types.is_struct(kind):
        fields = (kind.field(number) for number in range(kind.num_fields))
        return pa.struct([field.with_type(_without_views(field.type)) for field in fields])
    return {pa.binary_view(): pa.large_binary(), pa.string_view(): pa.large_string()}.get(kind, kind)


def _with_encoded_images(manifest: Any, image_column: str) -> Any:
    """A frame of pandas or polars whose column of PIL images, which is one of objects, holds PNG files instead."""
    is_pandas = hasattr(manifest, "assign")
    if not (is_pandas or hasattr(manifest, "with_columns")) or image_column not in manifest.columns:
        return manifest
    values = manifest[image_column].to_list() if str(manifest[image_column].dtype).lower() == "object" else []
    if not any(isinstance(value, Image.Image) for value in values):
        return manifest
    encoded = [_encoded(value) for value in values]
    if is_pandas:
        return manifest.assign(**{image_column: encoded})
    import polars

    return manifest.with_columns(polars.Series(image_column, encoded))


def _encoded(image: Any) -> Any:
    """A PIL image as a PNG file; other values as they are."""
    if not isinstance(image, Image.Image):
        return image
    file = io.BytesIO()
    mode = image.mode if image.mode in PNG_MODES else "RGB"
    image.convert(mode).save(file, "PNG")
    return file.getvalue()


def _absolute(table: pa.Table, image_column: str) -> pa.Table:
    """Make relative image paths absolute."""
    if image_column not in table.column_names:
        return table  # reported when the manifest is read
    place = table.column_names.index(image_column)
    column = table.column(place)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_struct(kind) and image_leaf(image_column, kind) and kind.get_field_index(PATH) >= 0:
        chunks = [_with_absolute_paths(chunk) for chunk in column.chunks]
        return table.set_column(place, image_column, pa.chunked_array(chunks)) if chunks else table
    if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return table
    made = pa.array([_place(value) for value in column.to_pylist()], pa.string())
    return table.set_column(place, image_column, made)


def _with_absolute_paths(images: pa.Array) -> pa.Array:
    """Images with bytes or a path; the path of one with bytes is its name."""
    held, paths = image_bytes(images), pc.struct_field(images, PATH).to_pylist()
    made = [path if there else _place(path) for path, there in zip(paths, held.is_valid().to_pylist(), strict=True)]
    return pa.StructArray.from_arrays([held, pa.array(made, pa.string())], [BYTES, PATH])


def _lines(rows: Iterable[Any], image_column: str) -> Iterator[str]:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            kind = type(row).__name__
            raise UsageError(f"manifest: row {number + 1} is a {kind}, not a dict with a column {image_column!r}")
        values = dict(row)
        if image_column in values:
            values[image_column] = _place(values[image_column])
        try:
            yield json.dumps(values, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise UsageError(f"manifest: row {number + 1}: {error}") from None


def _place(image: Any) -> Any:
    """An image's address, a data URL for one that is given itself; relative paths are of the working directory."""
    image = _encoded(image)
    if isinstance(image, dict) and image.keys() <= {BYTES, PATH}:  # as datasets of Hugging Face have them
        image = image.get(BYTES) or image.get(PATH)
    if isinstance(image, bytes | bytearray | memoryview):
        return f"data:application/octet-stream;base64,{base64.b64encode(image).decode()}"
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, str) or not image or scheme(image) or is_inline(image):
        return image
    return str(Path(image).expanduser().absolute())
