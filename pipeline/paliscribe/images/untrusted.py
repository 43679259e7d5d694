"""Pictures that callers of an endpoint name or bring: bytes of an upload, data URLs, and addresses that are allowed.

By default no address is read at all: see `addresses`. Live calls read them one by one, batches of callers through
`GuardedFetcher`.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final, get_args

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, RowError, RowErrorKind
from paliscribe.images.allowed import Addresses
from paliscribe.storage import inline

PASSING: Final = 500  # a refusal of this status or above may pass
LONGEST_WAIT: Final = 10.0  # seconds before another attempt
KINDS: Final[dict[str, RowErrorKind]] = {kind: kind for kind in get_args(RowErrorKind)} | {"not_allowed": "forbidden"}


class Pictures:
    """Reads the pictures that calls name or bring."""

    def __init__(self, config: ImagesConfig) -> None:
        self.config, self._addresses = config, Addresses(config)

    def check(self, picture: str) -> None:
        """Refuse an address that will not be read, before anything is. Raises RequestError."""
        if not inline.is_inline(picture):
            self._scheme(picture)
            self._addresses.check(picture)

    async def read(self, picture: str | bytes) -> bytes:
        """The encoded image. Raises RequestError for one that is malformed, too large or not allowed."""
        if isinstance(picture, bytes):
            return self._bounded(picture)
        if inline.is_inline(picture):
            try:
                return self._bounded(await asyncio.to_thread(inline.decoded, picture))
            except RowError as error:
                raise RequestError(400, error.kind, error.message) from None
        self._scheme(picture)
        return await self._addresses.read(picture)

    @staticmethod
    def _scheme(picture: str) -> None:
        scheme = picture.partition("://")[0].lower() if "://" in picture else ""
        if scheme not in ("http", "https", "s3"):
            raise RequestError(400, "bad_uri", "an image is a data URL (data:image/png;base64,...) or an upload")

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self.config.max_bytes:
            words = f"the image has {len(data):,} bytes; at most {self.config.max_bytes:,} are taken"
            raise RequestError(413, "too_large", words)
        return data


class GuardedFetcher:
    """Fetches as `storage.Fetcher` does, but what `Pictures` allows alone. One a process."""

    def __init__(self, config: ImagesConfig, *, concurrency: int, retries: int) -> None:
        self._pictures, self._concurrency, self._retries = Pictures(config), concurrency, retries

    def fetch_many(self, uris: Sequence[str]) -> list[bytes | RowError]:
        """The bytes at each address, or what stopped it, in order."""
        return asyncio.run(self._all(uris))

    async def _all(self, uris: Sequence[str]) -> list[bytes | RowError]:
        room = asyncio.Semaphore(self._concurrency)

        async def one(uri: str) -> bytes | RowError:
            async with room:
                return await self._one(uri)

        return await asyncio.gather(*(one(uri) for uri in uris))

    async def _one(self, uri: str) -> bytes | RowError:
        for attempt in range(self._retries + 1):
            try:
                return await self._pictures.read(uri) or RowError("empty", "the object has no bytes")
            except RequestError as error:
                if error.status < PASSING or attempt == self._retries:
                    return RowError(KINDS.get(error.code, "unreachable"), error.message)
            await asyncio.sleep(random.uniform(0, min(LONGEST_WAIT, 0.2 * 2**attempt)))
        raise AssertionError("unreachable")
