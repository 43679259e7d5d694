"""What run files of older versions hold, so that their runs can go on."""

import hashlib
import json
from collections.abc import Sequence
from typing import Unpack

from paliscribe.manifest.naming import ColumnSettings
from paliscribe.manifest.reading import read


def legacy_digest(source: str | Sequence[str], **columns: Unpack[ColumnSettings]) -> str:
    """The digest of a manifest as older versions made it: SHA-256 of its rows as JSON. Raises UsageError."""
    whole = hashlib.sha256()
    for row in read(source, **columns):
        whole.update(json.dumps([row.id, row.image, sorted(row.columns.items())]).encode() + b"\n")
    return whole.hexdigest()
