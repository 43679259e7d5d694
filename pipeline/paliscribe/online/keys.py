"""Who may call: API keys, of which only hashes are kept, and how often each may."""

import hashlib
import hmac
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from paliscribe.errors import RequestError, UsageError

VARIABLE = "PALISCRIBE_API_KEYS"  # several, with commas between them
HASHED = "sha256:"  # a key in a file may be given as its hash: sha256:HEX
SHORTEST = 16  # characters of a key
EVERYBODY = "everybody"  # the caller where there are no keys
COMMENT = re.compile(r"(^|\s)#.*")


def read_keys(file: str | None) -> tuple[str, ...]:
    """Hashes of the keys in a file, one a line, and in the environment. Raises UsageError, also for a file without any.

    `#` begins a comment at the beginning of a line or after a space, so that none of a key is taken for one.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"keys {file}: cannot be read ({error.__class__.__name__})") from None
        found = [word for line in lines if (word := COMMENT.sub("", line).strip())]
        if not found:
            raise UsageError(f"keys {file}: holds no key; without `keys` the endpoint asks for none")
        words += found
    return tuple(dict.fromkeys(_hashed(word) for word in words if word))


def _hashed(word: str) -> str:
    if word.startswith(HASHED):
        digest = word.removeprefix(HASHED).lower()
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise UsageError("a key that begins with sha256: has 64 hexadecimal digits after it")
        return digest
    if len(word) < SHORTEST:
        raise UsageError(f"an API key has at least {SHORTEST} characters; `openssl rand -hex 24` makes one")
    return hashlib.sha256(word.encode()).hexdigest()


class Keys:
    """Lets calls in. Without keys everybody may call, and all share one rate."""

    def __init__(
        self, hashes: Sequence[str], rate: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`rate`: calls a second of one key; it may save up ten seconds of them."""
        self._hashes, self._rate, self._clock = tuple(hashes), rate, clock
        self._left: dict[str, tuple[float, float]] = {}  # by key: calls it may make, and when that was so

    def admit(self, authorization: str | None) -> str:
        """Check a call's `Authorization` header, and name its caller. Raises RequestError 401 or 429."""
        key = self._key(authorization)
        if self._rate is not None:
            self._count(key, self._rate)
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else EVERYBODY

    def _count(self, key: str, rate: float) -> None:
        now, most = self._clock(), max(1.0, 10 * rate)
        left, then = self._left.get(key, (most, now))
        left = min(most, left + (now - then) * rate)
        if left < 1:
            words = f"{'this key' if key else 'the callers'} may make {rate:g} calls a second"
            raise RequestError(429, "rate_limited", words, retry_after=(1 - left) / rate)
        self._left[key] = (left - 1, now)

    def _key(self, authorization: str | None) -> str:
        if not self._hashes:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        raw = token.strip(" \t").encode("latin-1", "replace")  # as it came: headers are read as Latin-1
        given = hashlib.sha256(raw).hexdigest()
        found = ""
        for known in self._hashes:  # all of them, so that the time says nothing
            if hmac.compare_digest(known, given):
                found = known
        if not found or scheme.lower() != "bearer":
            raise RequestError(401, "invalid_api_key", "an API key is needed: Authorization: Bearer KEY")
        return found
