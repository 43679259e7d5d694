"""Authentication by API keys, kept as hashes only, and a rate limit for each key."""

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from paliscribe.errors import RequestError, UsageError

VARIABLE = "PALISCRIBE_API_KEYS"  # comma-separated keys
HASHED = "sha256:"  # prefix of a key that is given as its hash: sha256:HEX
MIN_LENGTH = 16  # characters of a key
ANONYMOUS = "everybody"  # caller id where no keys are configured; a stored folder name, do not change
COMMENT = re.compile(r"(^|\s)#.*")


def read_keys(file: str | None) -> tuple[str, ...]:
    """SHA-256 hashes of the keys in a file (one a line) and in the environment, without duplicates.

    `#` starts a comment at the start of a line or after whitespace only, since a key may contain it. Raises UsageError
    for an unreadable file, a file without keys, or a malformed key.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"keys {file}: cannot be read ({error.__class__.__name__})") from None
        found = [word for line in lines if (word := COMMENT.sub("", line).strip())]
        if not found:
            raise UsageError(f"keys {file}: contains no key; to require none, leave out `keys`")
        words += found
    return tuple(dict.fromkeys(_hashed(word) for word in words if word))


def _hashed(word: str) -> str:
    if word.startswith(HASHED):
        digest = word.removeprefix(HASHED).lower()
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise UsageError("a key that starts with sha256: must be followed by 64 hexadecimal digits")
        return digest
    if len(word) < MIN_LENGTH:
        raise UsageError(f"an API key needs at least {MIN_LENGTH} characters; generate one: `openssl rand -hex 24`")
    return hashlib.sha256(word.encode()).hexdigest()


class Keys:
    """Authenticates and rate-limits callers. Without keys every call is allowed, and all share one rate limit."""

    def __init__(
        self, hashes: Sequence[str], rate: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`rate`: calls per second and key, with a burst of ten seconds' worth; None for no limit."""
        self._hashes, self._rate, self._clock = tuple(hashes), rate, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # key hash -> calls left, time of that count

    @property
    def are_required(self) -> bool:
        """Whether a call needs a key."""
        return bool(self._hashes)

    def admit(self, authorization: str | None) -> str:
        """Check an `Authorization` header; returns the caller's id. Raises RequestError 401 or 429."""
        key = self._key(authorization)
        if self._rate is not None:
            self._count(key, self._rate)
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ANONYMOUS

    def _count(self, key: str, rate: float) -> None:
        now, most = self._clock(), max(1.0, 10 * rate)
        left, then = self._buckets.get(key, (most, now))
        left = min(most, left + (now - then) * rate)
        if left < 1:
            words = f"rate limit of {rate:g} calls per second reached for {'this key' if key else 'all callers'}"
            raise RequestError(429, "rate_limited", words, retry_after=(1 - left) / rate)
        self._buckets[key] = (left - 1, now)

    def _key(self, authorization: str | None) -> str:
        if not self._hashes:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        raw = token.strip(" \t").encode("latin-1", "replace")  # the bytes as sent: ASGI decodes headers as Latin-1
        given = hashlib.sha256(raw).hexdigest()
        found = ""
        for known in self._hashes:  # compare all, so that timing leaks nothing
            if hmac.compare_digest(known, given):
                found = known
        if not found or scheme.lower() != "bearer":
            raise RequestError(401, "invalid_api_key", "API key required: Authorization: Bearer KEY")
        return found
