"""Untrusted images of an endpoint's callers: uploads, data URLs, and allowed addresses.

By default no address is allowed: see `allowed`. Live requests read through `UntrustedImages`, background jobs through
`GuardedFetcher`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final, get_args

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, RowError, RowErrorKind
from paliscribe.images.allowed import AllowedAddresses
from paliscribe.images.fetch import Fetcher
from paliscribe.storage import StorageError, StorageErrorKind, inline, parquet
from paliscribe.storage.retry import with_retries

TEMPORARY: Final = 500  # errors of this HTTP status or above may be temporary
S3: Final = ("s3://", "s3a://", "s3n://")  # where Parquet files with images are read, as manifests are
KINDS: Final[dict[str, RowErrorKind]] = {kind: kind for kind in get_args(RowErrorKind)} | {"not_allowed": "forbidden"}


class UntrustedImages:
    """Reads untrusted images within the limits and the allowlist of the configuration."""

    def __init__(self, config: ImagesConfig) -> None:
        self.config, self.addresses = config, AllowedAddresses(config)

    def check(self, image: str) -> None:
        """Raise RequestError if the address is not allowed. Reads nothing."""
        if not inline.is_inline(image):
            self._check_scheme(image)
            self.addresses.check(image)

    async def read(self, image: str | bytes) -> bytes:
        """The encoded image. Raises RequestError: malformed, too large, not allowed, missing, timeout."""
        if isinstance(image, bytes):
            return self._bounded(image)
        if inline.is_inline(image):
            try:
                return self._bounded(await asyncio.to_thread(inline.decoded, image))
            except RowError as error:
                raise RequestError(400, error.kind, error.message) from None
        self._check_scheme(image)
        return await self.addresses.read(image)

    @staticmethod
    def _check_scheme(image: str) -> None:
        scheme = image.partition("://")[0].lower() if "://" in image else ""
        if scheme not in ("http", "https", "s3", "s3a", "s3n"):
            words = "an image must be a data URL (data:image/png;base64,...), an upload or an allowed address"
            raise RequestError(400, "bad_uri", words)

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self.config.max_bytes:
            words = f"the image has {len(data):,} bytes; the limit is {self.config.max_bytes:,}"
            raise RequestError(413, "too_large", words)
        return data


class GuardedFetcher(Fetcher):
    """Like `images.fetch.Fetcher`, but reads through `UntrustedImages`. One per process is enough.

    Images inside a Parquet file and members of archives are read if the file has an allowed address on S3.
    """

    def __init__(self, config: ImagesConfig, *, concurrency: int, retries: int) -> None:
        super().__init__(concurrency=concurrency, retries=retries, max_bytes=config.max_bytes)
        self._images = UntrustedImages(config)

    def fetch(self, uri: str) -> bytes:
        """See Fetcher; data URLs within the limit of the configuration too."""
        return self._read(uri) if inline.is_inline(uri) else super().fetch(uri)

    def _read(self, uri: str) -> bytes:
        if (file := parquet.file_of(uri) or "").startswith(S3):
            with _translating(uri):
                if self._images.addresses.check(file) != file:
                    raise RequestError(400, "bad_uri", "the address of the image's Parquet file is malformed")
            return super()._read(uri)
        return self._members.read(uri, self.max_bytes, lambda: self._read_object(uri), self._is_allowed)

    def _read_object(self, uri: str) -> bytes:
        with _translating(uri):
            return asyncio.run(self._images.read(uri))

    def _is_allowed(self, archive: str) -> bool:
        """Whether an archive may be read: on S3, at an allowed address."""
        try:
            return archive.startswith(S3) and self._images.addresses.check(archive) == archive
        except RequestError:
            return False

    def _with_retries(self, once: Callable[[], bytes], uri: str) -> bytes:
        return with_retries(once, self.retries)  # strangers' hosts are not waited for


@contextlib.contextmanager
def _translating(uri: str) -> Iterator[None]:
    """Turn a RequestError into a RowError, or into a StorageError if it may be temporary."""
    try:
        yield
    except RequestError as error:
        kind = KINDS.get(error.code, "unreachable")
        if error.status < TEMPORARY:
            raise RowError(kind, error.message) from None
        throttled: StorageErrorKind = "throttled" if kind == "throttled" else "unreachable"
        raise StorageError(throttled, uri, error.message, error.retry_after) from None
