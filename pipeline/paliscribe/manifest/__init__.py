"""Manifests: reading, validation, and freezing into shards."""

from paliscribe.manifest.freezing import (
    FrozenManifest,
    Scan,
    freeze,
    identity,
    load,
    read_shard,
    read_updated,
    scan,
)
from paliscribe.manifest.reading import read

__all__ = [
    "FrozenManifest",
    "Scan",
    "freeze",
    "identity",
    "load",
    "read",
    "read_shard",
    "read_updated",
    "scan",
]
