"""Protects an endpoint without API keys from web pages that are open on the same machine.

A page can send requests to a loopback address: under a name of its own that resolves to it (DNS rebinding), and then
read the replies, or from another origin, and then not. The browser tells both names.
"""

import ipaddress
from urllib.parse import urlsplit

from paliscribe.config import ServeConfig
from paliscribe.errors import RequestError

READING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


def check_names(config: ServeConfig, method: str, host: str | None, origin: str | None) -> None:
    """Check the `Host` and `Origin` headers of a call without a key. Raises RequestError 403.

    `Host` must be a loopback address, `localhost`, or one of the settings `host` and `hosts`; not checked under `open`.
    `Origin`, which browsers send, must be this endpoint or in `cors_origins`, unless the call only reads.
    """
    named = _name(f"//{host}")
    if not config.open and not (_is_loopback(named) or named in (config.host.lower(), *map(str.lower, config.hosts))):
        words = f"{named[:100]!r} is not a name of this endpoint; if it should be, add it to `hosts`"
        raise RequestError(403, "invalid_host", words)
    if origin is None or method in READING or {"*", origin} & set(config.cors_origins):
        return
    if urlsplit(origin).netloc.lower() != (host or "").lower():
        words = f"calls from pages of {origin[:100]!r} are not allowed; `cors_origins` lists the origins that are"
        raise RequestError(403, "invalid_origin", words)


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
