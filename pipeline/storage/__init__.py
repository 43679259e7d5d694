"""Objects by address: local paths, s3:// and http(s)://, behind one interface and one error."""

import uuid
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.storage.base import ObjectInfo, StorageError, StorageErrorKind, Store, redacted
from pipeline.storage.fetch import Fetcher
from pipeline.storage.http import HttpStore
from pipeline.storage.local import LocalStore
from pipeline.storage.s3 import S3Store

__all__ = [
    "Fetcher",
    "ObjectInfo",
    "StorageError",
    "StorageErrorKind",
    "Store",
    "check_writable",
    "open_store",
    "redacted",
    "resolve",
    "split",
]


def open_store(uri: str) -> Store:
    """The store of a folder or prefix. Raises StorageError `bad_uri`; nothing is contacted yet."""
    if "://" not in uri:
        return LocalStore(Path(uri).expanduser().absolute())
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme == "s3":
        bucket, _, prefix = uri.partition("://")[2].partition("/")
        if not bucket:
            raise StorageError("bad_uri", uri, "s3:// needs a bucket")
        return S3Store(bucket, prefix)
    if scheme in ("http", "https"):
        return HttpStore(uri)
    if scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    raise StorageError("bad_uri", uri, f"unknown scheme {scheme!r}; local paths, s3:// and http(s):// are known")


def split(uri: str) -> tuple[str, str]:
    """An object's folder and name: `s3://b/k/m.jsonl` -> (`s3://b/k`, `m.jsonl`)."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return str(path.parent), path.name
    folder, _, name = uri.rpartition("/")
    return folder, name


def resolve(reference: str, folder: str) -> str:
    """An image's address: absolute as it is, else relative to the manifest's folder."""
    if "://" in reference or reference.startswith("/"):
        return reference
    return f"{folder.rstrip('/')}/{reference}"


def check_writable(store: Store) -> None:
    """Write and remove a small object. Raises StorageError if that cannot be done."""
    key = f"_run/.writable-{uuid.uuid4().hex}"
    store.put(key, b"paliscribe")
    store.delete(key)
