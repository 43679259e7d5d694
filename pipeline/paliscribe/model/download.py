"""A model in an object store: what is there, and a copy of it on this node, made once and kept.

Copies are in `PALISCRIBE_CACHE`, else in `paliscribe` under `XDG_CACHE_HOME` or `~/.cache`; each is named after its
revision, and may be removed while nothing runs.
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

NEEDED = frozenset({".json", ".safetensors", ".model"})  # no code, and no weights in formats that can hold code
HASH = "sha256:"  # what a revision begins with that is a hash of contents
PARALLEL = 4  # objects fetched at a time
log = logging.getLogger(__name__)


def model_objects(store: Store) -> list[ObjectInfo]:
    """What of a prefix makes up a model, folders below it left out, by name. Raises StorageError."""
    return sorted(
        (found for found in store.list() if "/" not in found.key and PurePosixPath(found.key).suffix in NEEDED),
        key=lambda found: found.key,
    )


def revision_of(objects: Sequence[ObjectInfo]) -> str:
    """The revision: a hash of names, sizes and tags. No object need be read for it."""
    listed = "".join(f"{found.key}\0{found.size}\0{found.etag}\n" for found in objects)
    return f"{HASH}{hashlib.sha256(listed.encode()).hexdigest()[:16]}"


def cache_folder() -> Path:
    """Where copies are kept on this node."""
    if own := os.environ.get("PALISCRIBE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "paliscribe"


def download(store: Store, revision: str) -> Path:
    """The folder of a copy of this revision. Processes of one node that ask at once wait for the one that fetches.

    Raises UsageError if the prefix is no longer at that revision or cannot be read, or if the disk is full.
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
        raise UsageError(f"model {store.uri}: cannot be kept in {models}: {error.strerror or error}") from None
    return folder


def _fetch(store: Store, revision: str, folder: Path) -> None:
    """Fetch into a hidden folder that is renamed when it is whole; what an earlier attempt left is thrown away."""
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
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(fetch, objects))
        sizes = [(partial / found.key).stat().st_size for found in objects]
        if revision_of(model_objects(store)) != revision or sizes != [found.size for found in objects]:
            raise UsageError(f"model {store.uri}: it is no longer {revision}; was it written to?")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
