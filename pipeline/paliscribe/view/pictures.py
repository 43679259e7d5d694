"""Pictures of a run as JPEG, made smaller where they lie, within the limits of the run."""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

from PIL import Image

from paliscribe.config import FetchConfig
from paliscribe.errors import RowError
from paliscribe.images.decode import Limits, decode
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest.frozen import Shards
from paliscribe.storage import StorageError, Store
from paliscribe.storage.http import Headers
from paliscribe.storage.inline import is_inline
from paliscribe.storage.retry import with_retries

SIZES: Final = {"small": 400, "large": 1600, "whole": 3200}  # largest side, in pixels
KEPT: Final = 64 * 2**20  # bytes of JPEG that are kept
TIMEOUT: Final = 10.0  # seconds for one attempt at a store
T = TypeVar("T")


class Pictures:
    """Makes and keeps the pictures of a run. Thread-safe."""

    def __init__(self, store: Store, fetch: FetchConfig) -> None:
        self._store, self._limits = store, fetch
        self._fetcher = _Impatient(
            concurrency=16,
            retries=1,
            timeout=min(TIMEOUT, fetch.timeout),
            max_bytes=fetch.max_bytes,
            headers=Headers.of(fetch.user_agent, fetch.headers),
        )
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._bytes = 0
        self._shards: Shards | None = None
        self._lock, self._manifest = threading.Lock(), threading.Lock()
        self._decoding = threading.Semaphore(os.cpu_count() or 1)

    def jpeg(self, row: int, image: str, size: str) -> bytes:
        """The picture of a row. `image`: as its records name it. `size`: of `SIZES`. Raises RowError."""
        with self._lock:
            if (kept := self._kept.get((row, size))) is not None:
                self._kept.move_to_end((row, size))
                return kept
        data = self._fetcher.fetch(self._inline(row) if is_inline(image) else image)
        with self._decoding:
            made = self._smaller(data, SIZES[size])
        with self._lock:
            if (row, size) not in self._kept:
                self._kept[row, size] = made
                self._bytes += len(made)
            while self._bytes > KEPT and self._kept:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made

    def _inline(self, row: int) -> str:
        """The data URL of a row, of which its records have the beginning only."""
        try:
            with self._manifest:
                self._shards = self._shards or Shards(self._store)
                shard = self._shards.frozen.shard_of(row)
                found = next(each.image for each in self._shards.read(shard) if each.row == row)
        except (StorageError, StopIteration):
            raise RowError("missing", "the frozen manifest does not have this row") from None
        return found or ""

    def _smaller(self, data: bytes, size: int) -> bytes:
        """Decoding gives a square; its longer side is then right, or too long, and the other one is shortened."""
        limits = Limits(self._limits.decode_seconds, self._limits.decode_memory)
        found = decode(data, size, max_pixels=self._limits.max_pixels, draft=True, limits=limits)
        scale = min(1.0, size / max(found.width, found.height))
        sides = max(1, round(found.width * scale)), max(1, round(found.height * scale))
        file = io.BytesIO()
        Image.fromarray(found.pixels).resize(sides, Image.Resampling.LANCZOS).save(file, "JPEG", quality=88)
        return file.getvalue()


class _Impatient(Fetcher):
    """A fetcher that waits for no store: somebody is looking."""

    def _with_retries(self, once: Callable[[], bytes], uri: str) -> bytes:
        return with_retries(once, self.retries)
