"""Manifests: reading, validation, and freezing into files, of which a run reads its shards."""

from paliscribe.manifest.checked import COLUMNS, Scan
from paliscribe.manifest.extending import Extension, commit_extension, extend
from paliscribe.manifest.freezing import freeze, frozen_digest, identity, scan
from paliscribe.manifest.frozen import FrozenManifest, Shards, load
from paliscribe.manifest.ids import KnownIds, hashed
from paliscribe.manifest.legacy import legacy_digest
from paliscribe.manifest.peeking import fixed_columns
from paliscribe.manifest.reading import read
from paliscribe.manifest.sampling import Sample
from paliscribe.manifest.updated import updated_rows

__all__ = [
    "COLUMNS",
    "Extension",
    "FrozenManifest",
    "KnownIds",
    "Sample",
    "Scan",
    "Shards",
    "commit_extension",
    "extend",
    "fixed_columns",
    "freeze",
    "frozen_digest",
    "hashed",
    "identity",
    "legacy_digest",
    "load",
    "read",
    "scan",
    "updated_rows",
]
