"""The manifest: read, checked, and frozen into shards."""

from paliscribe.manifest.freezing import FrozenManifest, Scan, freeze, load, read_mended, read_shard, scan
from paliscribe.manifest.reading import read

__all__ = ["FrozenManifest", "Scan", "freeze", "load", "read", "read_mended", "read_shard", "scan"]
