"""The rows of a manifest, as they are read: checked one by one, in constant memory."""

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
    """Stream a manifest. A row without an id takes its image's reference; one without an image keeps None.

    Raises UsageError: malformed lines, no image column, a column that results already have.
    """
    folder = split(source)[0]
    taken = NAMES - {id_column, image_column}
    named = False
    seen: dict[str, None] = {}  # columns, until the image's is among them
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
                break  # more likely the images are in a column of another name
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
        raise UsageError(f"manifest {redacted(source)}: it has 0 rows, so there is nothing to annotate")
    if not named:
        known = ", ".join(map(repr, seen))
        raise UsageError(
            f"manifest {redacted(source)}: no column {image_column!r} (there is {known}); name the "
            f"right one by --image-column"
        )


def _plain(value: Any, name: str, row: int, source: str) -> Any:
    """A carried value as bool, int, float, str or None."""
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
        f"cannot be carried; leave it out"
    )


def _text(value: Any) -> str | None:
    text = "" if value is None or value != value else str(value).strip()
    return text or None


def _check_text(row: int, source: str, *values: Any) -> None:
    """Refuse halves of characters, which JSON can spell and no file can hold."""
    for value in values:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(
                    f"manifest {redacted(source)}: row {row + 1} holds text that is not Unicode: {value!r}"
                ) from None
