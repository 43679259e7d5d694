"""Manifests: reading, validation, and freezing into files, of which a run reads its shards."""

from paliscribe.manifest.checked import COLUMNS, Scan
from paliscribe.manifest.freezing import freeze, identity, read_updated, scan
from paliscribe.manifest.frozen import FrozenManifest, Shards, load
from paliscribe.manifest.legacy import legacy_digest
from paliscribe.manifest.reading import read

__all__ = [
    "COLUMNS",
    "FrozenManifest",
    "Scan",
    "Shards",
    "freeze",
    "identity",
    "legacy_digest",
    "load",
    "read",
    "read_updated",
    "scan",
]
