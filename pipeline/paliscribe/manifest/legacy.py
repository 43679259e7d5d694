"""What run files of older versions hold, so that their runs can go on."""

import hashlib
import json
from collections.abc import Sequence

from paliscribe.manifest.reading import read


def legacy_digest(source: str | Sequence[str], *, image_column: str, id_column: str) -> str:
    """The digest of a manifest as older versions made it: SHA-256 of its rows as JSON. Raises UsageError."""
    whole = hashlib.sha256()
    for row in read(source, image_column=image_column, id_column=id_column):
        whole.update(json.dumps([row.id, row.image, sorted(row.columns.items())]).encode() + b"\n")
    return whole.hexdigest()
