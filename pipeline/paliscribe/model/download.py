"""Models in an object store: their objects and revision, and a cached copy on this node.

The cache is `PALISCRIBE_CACHE`, else `paliscribe` under `XDG_CACHE_HOME` or `~/.cache`. A copy is named after its
revision; it may be deleted while nothing runs.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from paliscribe.errors import UsageError
from paliscribe.storage import ObjectInfo, StorageError, Store

MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".model"})  # no code, and no weight formats that can contain code
HASH_PREFIX = "sha256:"  # prefix of revisions that are content hashes
MAX_THREADS = 4  # concurrent downloads
log = logging.getLogger(__name__)


def model_objects(store: Store) -> list[ObjectInfo]:
    """The objects directly under a prefix that belong to a model, sorted by name. Raises StorageError."""
    return sorted(
        (found for found in store.list() if "/" not in found.key and PurePosixPath(found.key).suffix in MODEL_SUFFIXES),
        key=lambda found: found.key,
    )


def revision_of(objects: Sequence[ObjectInfo]) -> str:
    """The revision: a hash of names, sizes and etags. Reads no object."""
    listed = "".join(f"{found.key}\0{found.size}\0{found.etag}\n" for found in objects)
    return f"{HASH_PREFIX}{hashlib.sha256(listed.encode()).hexdigest()[:16]}"


def cache_folder() -> Path:
    """The folder for cached files on this node."""
    if own := os.environ.get("PALISCRIBE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "paliscribe"


def download(store: Store, revision: str) -> Path:
    """The folder with a copy of this revision, downloaded once per node: concurrent processes wait on a lock.

    Raises UsageError if the prefix has another revision or cannot be read, or if the copy cannot be written.
    """
    models = cache_folder() / "models"
    folder = models / revision.replace(":", "-")
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{folder.name}.lock"):
            if not folder.is_dir():
                _fetch(store, revision, folder)
    except StorageError as error:
        raise UsageError(f"model {error}") from None
    except OSError as error:
        raise UsageError(f"model {store.uri}: cannot be cached in {models}: {error.strerror or error}") from None
    return folder


def _fetch(store: Store, revision: str, folder: Path) -> None:
    """Download into a temporary folder and rename it when complete. Deletes an earlier attempt's partial download."""
    objects = model_objects(store)
    total = sum(found.size for found in objects)
    log.info("fetching %s, %.2f GB, into %s", store.uri, total / 1e9, folder)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()

    def fetch(found: ObjectInfo) -> None:
        with store.open(found.key) as source, (partial / found.key).open("wb") as target:
            shutil.copyfileobj(source, target, 8 << 20)

    try:
        with ThreadPoolExecutor(MAX_THREADS) as threads:
            list(threads.map(fetch, objects))
        sizes = [(partial / found.key).stat().st_size for found in objects]
        if revision_of(model_objects(store)) != revision or sizes != [found.size for found in objects]:
            raise UsageError(f"model {store.uri}: no longer {revision}: it changed during the download")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
