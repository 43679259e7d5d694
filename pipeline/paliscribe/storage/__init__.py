"""Storage: objects at local paths, s3:// and http(s):// addresses, behind one interface and one error class."""

import posixpath
import uuid

from paliscribe.storage import http, local, s3
from paliscribe.storage.base import (
    RETRYABLE,
    ObjectInfo,
    Scheme,
    StorageError,
    StorageErrorKind,
    Store,
    is_local,
    redacted,
    scheme,
)
from paliscribe.storage.inline import is_inline
from paliscribe.storage.local import is_text, local_address, local_path

__all__ = [
    "RETRYABLE",
    "SCHEMES",
    "ObjectInfo",
    "StorageError",
    "StorageErrorKind",
    "Store",
    "check_writable",
    "get_once",
    "is_local",
    "is_text",
    "local_address",
    "local_path",
    "open_store",
    "redacted",
    "registered_scheme",
    "resolve",
    "scheme",
    "split",
]


SCHEMES: dict[str, Scheme] = {
    "": local.SCHEME,
    "file": local.SCHEME,
    "s3": s3.SCHEME,
    "s3a": s3.SCHEME,  # as Hadoop and Spark write it
    "s3n": s3.SCHEME,
    "http": http.SCHEME,
    "https": http.SCHEME,
}


GOOGLE = (
    "Google Cloud Storage is read through its S3 interoperability: write s3:// and set "
    "AWS_ENDPOINT_URL=https://storage.googleapis.com with an HMAC key"
)
HINTS = {"gs": GOOGLE, "gcs": GOOGLE}  # other scheme -> the way out


def registered_scheme(uri: str) -> Scheme:
    """The registered scheme of an address. Raises StorageError `bad_uri` for an unknown scheme."""
    found = SCHEMES.get(scheme(uri))
    if found is None:
        words = ", ".join(dict.fromkeys(each.words for each in SCHEMES.values()))
        hint = f". {HINTS[scheme(uri)]}" if scheme(uri) in HINTS else ""
        raise StorageError("bad_uri", uri, f"unknown scheme {scheme(uri)!r}; known are {words}{hint}")
    return found


def open_store(uri: str) -> Store:
    """The store of a folder or prefix, without any network access. Raises StorageError `bad_uri`."""
    return registered_scheme(uri).open_store(uri)


def get_once(uri: str, max_bytes: int, connections: int, timeout: float) -> bytes:
    """Read a whole object, without retries. Raises StorageError.

    `max_bytes`: the largest object. `connections`: pool size. `timeout`: seconds to connect, and between two reads.
    """
    return registered_scheme(uri).get_once(uri, max_bytes, connections, timeout)


def split(uri: str) -> tuple[str, str]:
    """Split an object's address into folder and name: `s3://b/k/m.jsonl` -> (`s3://b/k`, `m.jsonl`).

    The name of a web address includes its query, so that folder and name joined give the address again. Raises
    StorageError `bad_uri` for a malformed file:// address.
    """
    name = scheme(uri)
    if is_local(uri):
        path = local_path(uri).expanduser().absolute()
        return str(path.parent), path.name
    found = SCHEMES.get(name)
    place, mark, query = uri.partition("?") if found is not None and found.query else (uri, "", "")
    start = place.index("://") + 3
    folder, slash, last = place[start:].rpartition("/")
    while folder.endswith("/"):  # empty parts belong to the name: `s3://b//x` is the key `/x`
        folder, last = folder[:-1], f"/{last}"
    return (place[:start] + folder, last + mark + query) if slash else (place, mark + query)


def resolve(reference: str, folder: str) -> str:
    """An image's absolute address: a relative `reference` is resolved against `folder`, `./` and `../` included."""
    if "://" in reference or scheme(reference) or reference.startswith("/") or is_inline(reference):
        return reference
    if scheme(folder) == "file" and "://" not in folder:  # file:/folder
        folder = f"file://{folder[len('file:') :]}"
    if not scheme(folder):
        return local_address(
            f"{folder.rstrip('/')}/{reference.removeprefix('./')}"
        )  # `..` is kept: it may follow a symlink
    start = folder.index("://") + 3
    authority, _, path = folder[start:].rstrip("/").partition("/")
    if not reference.startswith(("./", "../")) and "/./" not in reference and "/../" not in reference:
        return "/".join(filter(None, (folder[:start] + authority, path, reference)))
    inside = posixpath.normpath(f"/{path}/{reference}").lstrip("/")
    return f"{folder[:start]}{authority}/{inside}"


def check_writable(store: Store, key: str = "") -> None:
    """Check that a store is writable: create a small object, fail to create it again, and delete it.

    `key`: of the object; default: one in the folder of a run's own files.

    Raises StorageError if one of these fails; `forbidden` also if the store ignores the condition of a write, since two
    attempts at one shard could then both be committed.
    """
    key = key or f"_run/.writable-{uuid.uuid4().hex}"
    try:
        store.put_if_absent(key, b"first")
    except StorageError as error:  # the object's name says nothing to the user
        in_the_way = error.kind == "missing" and is_local(store.uri)
        words = "a part of this path is a file" if in_the_way else error.message
        raise StorageError(error.kind, store.uri, words, error.retry_after) from error
    try:
        if store.put_if_absent(key, b"second"):
            words = "this store ignores conditional writes (If-None-Match), without which rows could be duplicated"
            raise StorageError("forbidden", store.uri, words)
    finally:
        store.delete(key)
