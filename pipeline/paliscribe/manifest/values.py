"""Single values of a manifest: as Python has them, and as a frozen manifest does."""

import datetime
import decimal
import json
import re
from typing import Any

import numpy as np
import pyarrow as pa

# Texts in the place of an address that were a picture's bytes, or a list or an object, before they were written.
BASE64 = r"^b?['\"]?(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|AAAA.GZ0eXB|AAAADGpQ)[\w+/=-]{40}"
PRINTED = r"^(?:b['\"](?:\\x|GIF8|RIFF)|[{\[]\s*(?:b?['\"]|[{\[]))"


def holds_no_text(kind: pa.DataType) -> bool:
    """Whether values of this type are neither text, nor numbers or the like that have a text."""
    return pa.types.is_nested(kind) or holds_bytes(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type is binary, or has binary values in it."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    return kind == pa.binary_view() or any(holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def plain(value: Any) -> bool | int | float | str | None:
    """A carried value as bool, int, float, str or None. Raises ValueError for bytes."""
    if value is None or isinstance(value, (bool, str, float, int)):
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=_inner)
    return _inner(value)


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column; those that Python has no type for as text."""
    try:
        found: list[Any] = column.to_pylist()
        return found
    except (OverflowError, ValueError):  # a year beyond 9999, nanoseconds, text that is not UTF-8
        return [_python_value(value) for value in column]


def text_of(value: Any) -> str | None:
    """A value of the id or image column as text, without space around it; None for null, NaN and empty text."""
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def written_as_text(reference: str) -> str | None:
    """What an image's reference is that is no address, in words; None if it may be one."""
    if re.match(BASE64, reference):
        return "base64 without its head (data:image/png;base64,)"
    return "a printed list or object, or printed bytes" if re.match(PRINTED, reference) else None


def _inner(value: Any) -> str:
    """A value of no plain type as text. Raises ValueError for bytes."""
    if isinstance(value, (bytes, memoryview)):
        raise ValueError("holds bytes")
    return str(value)


def _python_value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (OverflowError, ValueError):
        if isinstance(value, pa.StructScalar):
            return {name: _python_value(inner) for name, inner in value.items()}
        if isinstance(value, pa.ListScalar):
            return [_python_value(inner) for inner in value.values]
        if pa.types.is_date(value.type):
            return str(np.datetime64(value.value, "D" if pa.types.is_date32(value.type) else "ms"))
        if pa.types.is_timestamp(value.type):
            return str(np.datetime64(value.value, value.type.unit)) + ("+00:00" if value.type.tz else "")
        if isinstance(value, pa.StringScalar | pa.LargeStringScalar):
            return value.as_buffer().to_pybytes().decode(errors="backslashreplace")
        return str(value.cast(pa.string()).as_py())
