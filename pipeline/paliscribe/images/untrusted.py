"""Untrusted images of an endpoint's callers: uploads, data URLs, and allowed addresses.

By default no address is allowed: see `allowed`. Live requests read through `UntrustedImages`, background jobs through
`GuardedFetcher`.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final, get_args

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, RowError, RowErrorKind
from paliscribe.images.allowed import AllowedAddresses
from paliscribe.storage import inline

RETRYABLE: Final = 500  # errors of this HTTP status or above may be temporary
MAX_BACKOFF: Final = 10.0  # seconds between two attempts
KINDS: Final[dict[str, RowErrorKind]] = {kind: kind for kind in get_args(RowErrorKind)} | {"not_allowed": "forbidden"}


class UntrustedImages:
    """Reads untrusted images within the limits and the allowlist of the configuration."""

    def __init__(self, config: ImagesConfig) -> None:
        self.config, self._addresses = config, AllowedAddresses(config)

    def check(self, image: str) -> None:
        """Raise RequestError if the address is not allowed. Reads nothing."""
        if not inline.is_inline(image):
            self._check_scheme(image)
            self._addresses.check(image)

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
        return await self._addresses.read(image)

    @staticmethod
    def _check_scheme(image: str) -> None:
        scheme = image.partition("://")[0].lower() if "://" in image else ""
        if scheme not in ("http", "https", "s3"):
            words = "an image must be a data URL (data:image/png;base64,...), an upload or an allowed address"
            raise RequestError(400, "bad_uri", words)

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self.config.max_bytes:
            words = f"the image has {len(data):,} bytes; the limit is {self.config.max_bytes:,}"
            raise RequestError(413, "too_large", words)
        return data


class GuardedFetcher:
    """Like `images.fetch.Fetcher`, but reads through `UntrustedImages`. One per process is enough."""

    def __init__(self, config: ImagesConfig, *, concurrency: int, retries: int) -> None:
        self._images, self._concurrency, self._retries = UntrustedImages(config), concurrency, retries

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes at each address, or its error, in order."""
        return asyncio.run(self._all(uris))

    async def _all(self, uris: Sequence[str]) -> list[bytes | RowError]:
        limit = asyncio.Semaphore(self._concurrency)

        async def one(uri: str) -> bytes | RowError:
            async with limit:
                return await self._one(uri)

        return await asyncio.gather(*(one(uri) for uri in uris))

    async def _one(self, uri: str) -> bytes | RowError:
        for attempt in range(self._retries + 1):
            try:
                return await self._images.read(uri) or RowError("empty", "the object has no bytes")
            except RequestError as error:
                if error.status < RETRYABLE or attempt == self._retries:
                    return RowError(KINDS.get(error.code, "unreachable"), error.message)
            await asyncio.sleep(random.uniform(0, min(MAX_BACKOFF, 0.2 * 2**attempt)))
        raise AssertionError("unreachable")
