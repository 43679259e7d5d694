"""Objects by address: local paths, s3:// and http(s)://, behind one interface and one error."""

import posixpath
import uuid

from paliscribe.storage.base import ObjectInfo, StorageError, StorageErrorKind, Store, is_local, redacted, scheme
from paliscribe.storage.http import HttpStore
from paliscribe.storage.inline import is_inline
from paliscribe.storage.local import LocalStore, local_path
from paliscribe.storage.s3 import S3Store

__all__ = [
    "ObjectInfo",
    "StorageError",
    "StorageErrorKind",
    "Store",
    "check_writable",
    "is_local",
    "local_path",
    "open_store",
    "redacted",
    "resolve",
    "split",
]


def open_store(uri: str) -> Store:
    """The store of a folder or prefix. Raises StorageError `bad_uri`; nothing is contacted yet."""
    name = scheme(uri)
    if is_local(uri):
        return LocalStore(local_path(uri).expanduser().absolute())
    if name == "s3":
        bucket, _, prefix = uri.partition("://")[2].partition("/")
        if not bucket:
            raise StorageError("bad_uri", uri, "s3:// needs a bucket")
        return S3Store(bucket, prefix)
    if name in ("http", "https"):
        return HttpStore(uri)
    raise StorageError("bad_uri", uri, f"unknown scheme {name!r}; local paths, s3:// and http(s):// are known")


def split(uri: str) -> tuple[str, str]:
    """An object's folder and name: `s3://b/k/m.jsonl` -> (`s3://b/k`, `m.jsonl`).

    A web address keeps its query with the name, so that folder and name joined are the address again. Raises
    StorageError `bad_uri` for a malformed file:// address.
    """
    name = scheme(uri)
    if is_local(uri):
        path = local_path(uri).expanduser().absolute()
        return str(path.parent), path.name
    place, mark, query = uri.partition("?") if name in ("http", "https") else (uri, "", "")
    start = place.index("://") + 3
    folder, slash, last = place[start:].rpartition("/")
    return (place[:start] + folder, last + mark + query) if slash else (place, mark + query)


def resolve(reference: str, folder: str) -> str:
    """An image's address: absolute as it is, else relative to the manifest's folder (`./` and `../` work anywhere)."""
    if "://" in reference or reference.startswith("/") or is_inline(reference):
        return reference
    if not scheme(folder):
        return f"{folder.rstrip('/')}/{reference.removeprefix('./')}"  # `..` is left to the disk: it may follow a link
    start = folder.index("://") + 3
    authority, _, path = folder[start:].rstrip("/").partition("/")
    if not reference.startswith(("./", "../")) and "/./" not in reference and "/../" not in reference:
        return "/".join(filter(None, (folder[:start] + authority, path, reference)))
    inside = posixpath.normpath(f"/{path}/{reference}").lstrip("/")
    return f"{folder[:start]}{authority}/{inside}"


def check_writable(store: Store) -> None:
    """Create a small object, be refused to create it again, and remove it.

    Raises StorageError if that cannot be done; `forbidden` too where the store ignores the condition of a write:
    there two attempts at one shard could both count.
    """
    key = f"_run/.writable-{uuid.uuid4().hex}"
    store.put_if_absent(key, b"first")
    try:
        if store.put_if_absent(key, b"second"):
            words = "this store ignores conditional writes (If-None-Match), without which rows could double"
            raise StorageError("forbidden", store.uri, words)
    finally:
        store.delete(key)
