"""Which addresses may be read for a call, and reading them without being led elsewhere.

An address must match an entry of the operator's list. A web host is resolved once, every address that it resolves to
must be public, and the connection is made to just that address, so that a name cannot change its mind in between; each
redirect is checked as if it were the caller's. Nothing is learnt from a proxy of the environment.
"""

import asyncio
import fnmatch
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, UsageError
from paliscribe.storage import StorageError, open_store, split

REDIRECTS: Final = 3
PORTS: Final = {"http": 80, "https": 443}
ODD: Final = re.compile(r"[\x00-\x20\x7f\\]")  # letters that parsers of addresses disagree about
TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")  # NAT64, RFC 6052: an IPv4 address in its last 32 bits
STATUS: Final = {"missing": 400, "forbidden": 400, "bad_uri": 400, "too_large": 413, "throttled": 503}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Allowed:
    """One entry: `https://host/path`, `https://*.host/`, `s3://bucket/prefix`."""

    scheme: str
    host: str
    port: int | None
    path: str

    @classmethod
    def parse(cls, entry: str) -> "Allowed":
        """Read an entry of the list. Raises UsageError."""
        parts = _split(entry)
        if parts is None or parts.query or parts.fragment:
            raise UsageError(f"images.addresses: {entry!r} is not like https://host/path/ or s3://bucket/prefix/")
        path = parts.path or "/"
        return cls(parts.scheme, _host(parts), _port(parts), path if path.endswith("/") else f"{path}/")

    def matches(self, parts: SplitResult) -> bool:
        """Whether an address lies below this entry."""
        if (parts.scheme, _port(parts)) != (self.scheme, self.port) or ".." in parts.path.split("/"):
            return False
        if "%2e" in parts.path.lower() or not parts.path.startswith(self.path):
            return False
        if self.scheme == "s3" or "*" not in self.host:
            return _host(parts) == self.host
        return fnmatch.fnmatchcase(_host(parts), self.host)


class Addresses:
    """Reads what the list allows."""

    def __init__(self, config: ImagesConfig) -> None:
        """Raises UsageError for an entry that is no address."""
        self._config = config
        self._allowed = [Allowed.parse(entry) for entry in config.addresses]

    def check(self, address: str) -> None:
        """Whether the list allows an address. Raises RequestError; where it leads is not known before it is read."""
        self._checked(address)

    async def read(self, address: str) -> bytes:
        """The bytes at an address. Raises RequestError: not allowed, missing, too large, too slow."""
        try:
            async with asyncio.timeout(self._config.timeout):
                for _ in range(REDIRECTS + 1):
                    parts = self._checked(address)
                    if parts.scheme == "s3":
                        return await asyncio.to_thread(self._from_store, address)
                    found = await self._from_web(parts)
                    if isinstance(found, bytes):
                        return found
                    address = _joined(address, found)
        except TimeoutError:
            raise RequestError(504, "unreachable", "the image's host did not answer in time") from None
        raise RequestError(400, "unreachable", f"the image's address redirects more than {REDIRECTS} times")

    def _checked(self, address: str) -> SplitResult:
        parts = _split(address)
        if parts is None:
            raise RequestError(400, "bad_uri", "the image's address is malformed")
        if not any(entry.matches(parts) for entry in self._allowed):
            words = f"images from {parts.scheme}://{parts.hostname} are not allowed here: send a data URL"
            raise RequestError(403, "not_allowed", words)
        return parts

    def _from_store(self, address: str) -> bytes:
        folder, name = split(address)
        try:
            return open_store(folder).get(name, max_bytes=self._config.max_bytes)
        except StorageError as error:
            raise RequestError(STATUS.get(error.kind, 502), error.kind, "the image: " + error.message) from None

    async def _from_web(self, parts: SplitResult) -> bytes | str:
        """The body, or where it redirects to."""
        host = _host(parts)
        address = await self._resolve(host, _port(parts) or 0)
        at = f"[{address}]" if address.version == 6 else str(address)
        url = parts._replace(netloc=f"{at}:{_port(parts)}", fragment="").geturl()
        headers = {"Host": parts.netloc, "User-Agent": "paliscribe", "Accept-Encoding": "identity"}
        try:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=self._config.timeout) as client,
                client.stream("GET", url, headers=headers, extensions={"sni_hostname": host}) as reply,
            ):
                if reply.is_redirect:
                    return str(reply.headers.get("location", ""))
                if reply.status_code != 200:
                    raise RequestError(400, "missing", f"the image's host answered {reply.status_code}")
                return await self._bounded(reply)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise RequestError(502, "unreachable", "the image's host cannot be read from") from None

    async def _bounded(self, reply: httpx.Response) -> bytes:
        body = bytearray()
        async for part in reply.aiter_raw():
            body += part
            if len(body) > self._config.max_bytes:
                words = f"the image has more than the {self._config.max_bytes:,} bytes that are taken"
                raise RequestError(413, "too_large", words)
        return bytes(body)

    async def _resolve(self, host: str, port: int) -> Address:
        """The address to connect to. Raises RequestError if the host has none, or any that is not public."""
        try:
            loop = asyncio.get_running_loop()
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise RequestError(400, "unreachable", "the image's host has no address") from None
        found = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
        if not found or (not self._config.private and not all(map(is_public, found))):
            raise RequestError(403, "not_allowed", "the image's host is not a public one")
        return found[0]


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, and none that stands for another one that is not."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in TRANSLATED:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(one is not None and not is_public(one) for one in inner):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _split(address: str) -> SplitResult | None:
    """The parts of an address, or None if it is none that can be allowed."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018 - it raises for a port that is none
    except ValueError:
        return None
    known = parts.scheme in ("http", "https", "s3") and bool(parts.hostname)
    return parts if known and not ODD.search(address) and "@" not in parts.netloc else None


def _joined(address: str, redirect: str) -> str:
    try:
        return urljoin(address, redirect)
    except ValueError:
        raise RequestError(400, "bad_uri", "the image's address redirects to one that is malformed") from None


def _host(parts: SplitResult) -> str:
    return (parts.netloc if parts.scheme == "s3" else parts.hostname or "").rstrip(".")


def _port(parts: SplitResult) -> int | None:
    return parts.port or PORTS.get(parts.scheme)
