"""SSRF protection: an allowlist for untrusted image addresses, and reads that cannot leave it.

An address must match an entry of the operator's list. It is brought into one form, which is both matched and read; one
that servers could read in several ways is refused. An HTTP host is resolved once, all of its IP addresses must be
public, and the connection goes to the checked IP address, which prevents DNS rebinding. Each redirect is checked like
the original address. Proxy settings of the environment are ignored.
"""

import asyncio
import fnmatch
import ipaddress
import re
import socket
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, UsageError
from paliscribe.storage import StorageError, get_once, http
from paliscribe.storage.retry import with_retries
from paliscribe.storage.s3_client import RETRIES, endpoint

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS: Final = 3
CONNECTIONS: Final = 32  # to an S3 store
PORTS: Final = {"http": 80, "https": 443}
AMBIGUOUS: Final = re.compile(r"[\x00-\x20\x7f\\]")  # characters that URL parsers treat differently
BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")
ENCODINGS: Final = 5  # layers of percent-encoding in a path, at most
OVERLONG: Final = re.compile(rb"\x00|[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}")
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
STATUS: Final = {"missing": 400, "forbidden": 400, "bad_uri": 400, "too_large": 413, "throttled": 503}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class AllowedEntry:
    """One entry of the allowlist: `https://host/path`, `https://*.host/`, `s3://bucket/prefix`."""

    scheme: str
    host: str
    port: int | None
    path: str

    @classmethod
    def parse(cls, entry: str) -> "AllowedEntry":
        """Parse an entry. Raises UsageError."""
        parts = _split(entry)
        if parts is None or parts.query or parts.fragment or _may_leave(parts.path):
            raise UsageError(f"images.addresses: {entry!r}: expected https://host/path/ or s3://bucket/prefix/")
        path = parts.path or "/"
        return cls(parts.scheme, _host(parts), _port(parts), path if path.endswith("/") else f"{path}/")

    def matches(self, parts: SplitResult) -> bool:
        """Whether an address is below this entry."""
        if (parts.scheme, _port(parts)) != (self.scheme, self.port) or not parts.path.startswith(self.path):
            return False
        if _may_leave(parts.path):
            return False
        if self.scheme == "s3" or "*" not in self.host:
            return _host(parts) == self.host
        return fnmatch.fnmatchcase(_host(parts), self.host)


class AllowedAddresses:
    """Reads untrusted addresses that the allowlist admits."""

    def __init__(self, config: ImagesConfig) -> None:
        """Raises UsageError for an invalid entry."""
        self._config = config
        self._allowed = [AllowedEntry.parse(entry) for entry in config.addresses]

    def check(self, address: str) -> str:
        """The address as it is read. Raises RequestError if the list does not allow it.

        `read` also checks its IP and redirects.
        """
        return self._checked(address).geturl()

    async def read(self, address: str) -> bytes:
        """The bytes at an address. Raises RequestError: not allowed, missing, too large, timeout."""
        try:
            async with asyncio.timeout(self._config.timeout):
                for _ in range(MAX_REDIRECTS + 1):
                    parts = self._checked(address)
                    if parts.scheme == "s3":
                        return await asyncio.to_thread(self._from_store, parts.geturl())
                    found = await self._from_web(parts)
                    if isinstance(found, bytes):
                        return found
                    address = _joined(address, found)
        except TimeoutError:
            raise RequestError(504, "unreachable", "timeout reading from the image's host") from None
        raise RequestError(400, "unreachable", f"the image's address redirects more than {MAX_REDIRECTS} times")

    def _checked(self, address: str) -> SplitResult:
        parts = _split(address)
        if parts is None:
            raise RequestError(400, "bad_uri", "the image's address is malformed")
        if not any(entry.matches(parts) for entry in self._allowed):
            words = f"images from {parts.scheme}://{parts.hostname} are not allowed: send a data URL"
            raise RequestError(403, "not_allowed", words)
        return parts

    def _from_store(self, address: str) -> bytes:
        most, timeout = self._config.max_bytes, self._config.timeout
        try:
            return with_retries(lambda: get_once(address, most, CONNECTIONS, timeout), RETRIES, endpoint())
        except StorageError as error:
            raise RequestError(STATUS.get(error.kind, 502), error.kind, "the image: " + error.message) from None

    async def _from_web(self, parts: SplitResult) -> bytes | str:
        """The body of the response, or the address that it redirects to."""
        import httpx

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
                if not http.is_whole(reply):
                    raise _refused(reply)
                return await self._bounded(reply)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise RequestError(502, "unreachable", "cannot read from the image's host") from None

    async def _bounded(self, reply: "httpx.Response") -> bytes:
        body = bytearray()
        async for part in reply.aiter_raw():
            body += part
            if len(body) > self._config.max_bytes:
                words = f"the image exceeds the limit of {self._config.max_bytes:,} bytes"
                raise RequestError(413, "too_large", words)
        return bytes(body)

    async def _resolve(self, host: str, port: int) -> Address:
        """The IP address to connect to. Raises RequestError if the host has none, or any private one."""
        try:
            loop = asyncio.get_running_loop()
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise RequestError(400, "unreachable", "cannot resolve the image's host") from None
        found = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]
        if not found or (not self._config.private and not all(map(is_public, found))):
            raise RequestError(403, "not_allowed", "the image's host has a private address")
        return found[0]


def _refused(reply: "httpx.Response") -> RequestError:
    """The error of a response without an image: the host's own failures may be temporary."""
    words = f"the image's host answered {reply.status_code}"
    kind = http.STATUS.get(reply.status_code, "unreachable" if reply.status_code >= 500 else "missing")
    if kind == "throttled":
        return RequestError(503, kind, words, retry_after=http.retry_after(reply))
    return RequestError(
        502 if kind == "unreachable" else 400, "unreachable" if kind == "unreachable" else "missing", words
    )


def is_public(address: Address) -> bool:
    """Whether an IP address is public, and so are the IPv4 addresses that it embeds (mapped, 6to4, Teredo, NAT64)."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in NAT64:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if any(one is not None and not is_public(one) for one in inner):
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _split(address: str) -> SplitResult | None:
    """The parts of an address, or None if it is malformed or ambiguous. All of an S3 key is in the path."""
    scheme, _, rest = address.partition("://")
    if scheme.lower() in ("s3", "s3a", "s3n"):
        bucket, slash, key = rest.partition("/")
        parts = SplitResult("s3", bucket, slash + key, "", "")
        known = BUCKET.fullmatch(bucket) is not None
    else:
        try:
            parts = urlsplit(address)
            parts.port  # noqa: B018 - raises for an invalid port
        except ValueError:
            return None
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    return parts if known and not AMBIGUOUS.search(address) else None


def _may_leave(path: str) -> bool:
    """Whether a server may read a path as one with `.` or `..` parts, which could lead out of an allowed folder.

    Some servers decode more than once, some take backslashes for slashes, some leave out what follows a semicolon or a
    NUL, some read UTF-8 that is longer than it may be, and some take letters for others that look like them.
    """
    for _ in range(ENCODINGS):
        decoded = unquote(path)
        if OVERLONG.search(unquote_to_bytes(path)):
            return True
        if decoded == path:
            parts = re.split(r"[/\\]", unicodedata.normalize("NFKC", path))
            return any(part.partition(";")[0] in (".", "..") for part in parts)
        path = decoded
    return True


def _joined(address: str, redirect: str) -> str:
    try:
        return urljoin(address, redirect)
    except ValueError:
        raise RequestError(400, "bad_uri", "the image's address redirects to a malformed one") from None


def _host(parts: SplitResult) -> str:
    return (parts.netloc if parts.scheme == "s3" else parts.hostname or "").rstrip(".")


def _port(parts: SplitResult) -> int | None:
    return parts.port or PORTS.get(parts.scheme)
