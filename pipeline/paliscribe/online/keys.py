"""Authentication by API keys, kept as hashes only."""

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path

from paliscribe.errors import RequestError, UsageError
from paliscribe.online.limits import Limit

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
    """Authenticates callers and counts their calls. Without keys every call is allowed, and all share one limit."""

    def __init__(self, hashes: Sequence[str], limit: Limit | None = None) -> None:
        """`limit`: the rate limit of each key; None for no limit."""
        self._hashes, self._limit = tuple(hashes), limit

    @property
    def are_required(self) -> bool:
        """Whether a call needs a key."""
        return bool(self._hashes)

    async def admit(self, authorization: str | None) -> str:
        """Check an `Authorization` header; returns the caller's id. Raises RequestError 401 or 429."""
        key = self._key(authorization)
        if self._limit is not None:
            await self._limit.take(key)
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else ANONYMOUS

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
