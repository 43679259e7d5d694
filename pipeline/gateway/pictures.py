"""Pictures of online calls: bytes of an upload, data URLs, and addresses that the operator has allowed.

By default no address is read at all: see `addresses`.
"""

import asyncio
import base64
import binascii
import re
from typing import Final

from pipeline.config import ImagesConfig
from pipeline.errors import RequestError
from pipeline.gateway.addresses import Addresses

DATA: Final = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w-]+=[\w.-]+)*(?P<base64>;base64)?,", re.ASCII)


class Pictures:
    """Reads the pictures that calls name or bring."""

    def __init__(self, config: ImagesConfig) -> None:
        self.config, self._addresses = config, Addresses(config)

    async def read(self, picture: str | bytes) -> bytes:
        """The encoded image. Raises RequestError for one that is malformed, too large or not allowed."""
        if isinstance(picture, bytes):
            return self._bounded(picture)
        if picture[:5].lower() == "data:":
            return self._bounded(await asyncio.to_thread(decoded, picture))
        scheme = picture.partition("://")[0].lower() if "://" in picture else ""
        if scheme not in ("http", "https", "s3"):
            raise RequestError(400, "bad_uri", "an image is a data URL (data:image/png;base64,...) or an upload")
        return await self._addresses.read(picture)

    def _bounded(self, data: bytes) -> bytes:
        if len(data) > self.config.max_bytes:
            words = f"the image has {len(data):,} bytes; at most {self.config.max_bytes:,} are taken"
            raise RequestError(413, "too_large", words)
        return data


def decoded(url: str) -> bytes:
    """The bytes of a data URL: RFC 2397, in base64 only. Raises RequestError."""
    head = DATA.match(url)
    if head is None or not head["base64"]:
        raise RequestError(400, "bad_uri", "a data URL looks like data:image/png;base64,...")
    if head["type"] is not None and not head["type"].lower().startswith(("image/", "application/octet-stream")):
        raise RequestError(400, "not_an_image", f"the data URL says that it is {head['type']}, not an image")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(400, "bad_uri", "the data URL is not valid base64") from None
