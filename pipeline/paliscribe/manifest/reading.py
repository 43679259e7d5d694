"""Streams the rows of a manifest, validated one by one, in constant memory."""

import datetime
import decimal
import json
from collections.abc import Iterator
from typing import Any

from paliscribe.errors import UsageError
from paliscribe.manifest import formats
from paliscribe.records import ManifestRow
from paliscribe.results.schema import NAMES
from paliscribe.storage import redacted, resolve, split
from paliscribe.storage.inline import is_inline


def read(source: str, *, image_column: str = "image", id_column: str = "id") -> Iterator[ManifestRow]:
    """Stream a manifest. A row without an image has `image` None.

    The id of a row defaults to its image reference, or to `row-N` for an inline or missing image.

    Raises UsageError: malformed lines, no rows, no image column, a column with the name of a result column.
    """
    folder = split(source)[0]
    taken = NAMES - {id_column, image_column}
    named = False
    seen: dict[str, None] = {}  # columns, until the image column is found
    for number, values in enumerate(formats.rows(source, image_column, id_column)):
        if not named:
            seen |= dict.fromkeys(values)
            named = image_column in seen
        if number == 1000 and not named:
            break
        reference = _text(values.pop(image_column, None))
        given = _text(values.pop(id_column, None))
        if clash := sorted(taken & values.keys()):
            if not named:
                break  # the image column probably has another name
            raise UsageError(
                f"manifest {redacted(source)}: column {', '.join(map(repr, clash))} has the name of "
                f"a result column; rename it"
            )
        columns = {name: _plain(value, name, number, source) for name, value in values.items()}
        _check_text(number, source, given, reference, *columns, *columns.values())
        yield ManifestRow(
            row=number,
            id=given or (reference if reference and not is_inline(reference) else f"row-{number}"),
            image=resolve(reference, folder) if reference else None,
            columns={name: value for name, value in columns.items() if value is not None},
        )
    if not seen:
        raise UsageError(f"manifest {redacted(source)}: no rows")
    if not named:
        known = ", ".join(map(repr, seen))
        raise UsageError(
            f"manifest {redacted(source)}: no column {image_column!r} (columns: {known}); set "
            f"the right one with --image-column"
        )


def _plain(value: Any, name: str, row: int, source: str) -> Any:
    """A carried value as bool, int, float, str or None. Raises UsageError for other types."""
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise UsageError(f"manifest {redacted(source)}: column {name!r} in row {row + 1} does not fit into 64 bits")
        return value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    raise UsageError(
        f"manifest {redacted(source)}: column {name!r} holds {type(value).__name__} values, which "
        f"are not supported; remove the column"
    )


def _text(value: Any) -> str | None:
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def _check_text(row: int, source: str, *values: Any) -> None:
    """Raise UsageError for lone surrogates, which JSON can represent and UTF-8 cannot."""
    for value in values:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"manifest {redacted(source)}: row {row + 1} holds text that is not Unicode: {value!r}"
                ) from None
