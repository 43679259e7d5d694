"""Authentication by API keys, kept as hashes only. Each key belongs to a tenant."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paliscribe.errors import RequestError, UsageError
from paliscribe.online.limits import Limit

VARIABLE = "PALISCRIBE_API_KEYS"  # comma-separated, each as a line of the file
HASHED = "sha256:"  # prefix of a key that is given as its hash: sha256:HEX
MIN_LENGTH = 16  # characters of a key
ANONYMOUS = "everybody"  # caller id where no keys are configured; a stored folder name, do not change
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
TENANT_ID = "tenant-"  # prefix of a named tenant's caller id; a stored folder name, do not change
COMMENT = re.compile(r"(^|\s)#.*")
FORMS = f"a line is KEY, {HASHED}HEX, TENANT:KEY or TENANT:{HASHED}HEX"

Tenants = Mapping[str, str]  # SHA-256 of a key, in hexadecimal -> its tenant's name; "": the key is its own tenant


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an endpoint's keys come from, and what was found there when it was deployed.

    `file`: absolute path, or None. `environment`: keys of the variable. `found`: all keys.
    """

    file: str | None = None
    environment: Tenants = field(default_factory=dict)
    found: Tenants = field(default_factory=dict)

    def read(self) -> bytes:
        """The file as it is now. Raises UsageError if it cannot be read."""
        assert self.file is not None
        try:
            return Path(self.file).read_bytes()
        except OSError as error:
            raise UsageError(f"keys {self.file}: cannot be read ({error.__class__.__name__})") from None

    def parse(self, content: bytes) -> dict[str, str]:
        """All keys, if this is the file's content. Raises UsageError: malformed, contradictory, or without any key."""
        place = f"keys {self.file}"
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"{place}: cannot be read (it is not UTF-8)") from None
        words = {f"line {number}": COMMENT.sub("", line).strip() for number, line in enumerate(lines, 1)}
        if not any(words.values()):
            raise UsageError(f"{place}: contains no key; to require none, leave out `keys`")
        return _parsed(place, words, dict(self.environment))


def read_keys(file: str | None) -> KeySource:
    """The keys in a file (one a line) and in the environment, by their hashes.

    `#` starts a comment at the start of a line or after whitespace only, since a key may contain it. Raises UsageError
    for an unreadable file, a file without keys, or a malformed line; the message has its number and no part of a key.
    """
    words = os.environ.get(VARIABLE, "").split(",")
    environment = _parsed(VARIABLE, {f"key {number}": word.strip() for number, word in enumerate(words, 1)}, {})
    if file is None:
        return KeySource(None, environment, environment)
    source = KeySource(str(Path(file).expanduser().absolute()), environment)
    return KeySource(source.file, environment, source.parse(source.read()))


def _parsed(place: str, words: Mapping[str, str], found: dict[str, str]) -> dict[str, str]:
    """Add keys to those `found` elsewhere. `words`: name of each line -> its text."""
    for name, word in words.items():
        try:
            for digest, tenant in _entries(word) if word else ():
                if found.setdefault(digest, tenant) != tenant:
                    raise UsageError("the same key is given a second time, with another tenant or none")
        except UsageError as error:
            raise UsageError(f"{place}: {name}: {error}") from None
    return found


def _entries(word: str) -> Iterable[tuple[str, str]]:
    """Hash and tenant of each key that a line allows."""
    tenant, colon, key = word.partition(":")
    if not colon or word.startswith(HASHED):
        return [(_hashed(word), "")]
    if not TENANT.fullmatch(tenant):
        words = f"before a colon is a tenant's name ({TENANT.pattern}); a key with a colon in it is given by its hash"
        raise UsageError(f"{words}: {FORMS}")
    if key.strip().startswith(HASHED):
        return [(_hashed(key.strip()), tenant)]
    # The whole line is a key too: it was one before there were tenants.
    return [(_hashed(key.strip()), tenant), (_digest(word), tenant)]


def _hashed(word: str) -> str:
    if word.startswith(HASHED):
        digest = word.removeprefix(HASHED).lower()
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise UsageError("a key that starts with sha256: must be followed by 64 hexadecimal digits")
        return digest
    if len(word) < MIN_LENGTH:
        raise UsageError(f"an API key needs at least {MIN_LENGTH} characters; generate one: `openssl rand -hex 24`")
    return _digest(word)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def own_id(digest: str) -> str:
    """Caller id of a key without a named tenant; a stored folder name, do not change. `digest`: the key's hash."""
    return _digest(digest)[:16]


def caller_id(digest: str, tenant: str) -> str:
    """The caller id of a key's tenant, which is also its folder in the store."""
    return TENANT_ID + tenant if tenant else own_id(digest)


class Keys:
    """Authenticates callers and counts their calls. Without keys every call is allowed, and all share one limit."""

    def __init__(self, tenants: Tenants, limit: Limit | None = None) -> None:
        """`limit`: the rate limit of each tenant; None for no limit."""
        self._tenants, self._limit = dict(tenants), limit

    @property
    def are_required(self) -> bool:
        """Whether a call needs a key."""
        return bool(self._tenants)

    def replace(self, tenants: Tenants) -> None:
        """Take other keys from the next call on; never none, so that an endpoint with keys is never open."""
        assert tenants
        self._tenants = dict(tenants)

    async def admit(self, authorization: str | None) -> str:
        """Check an `Authorization` header; returns the caller's id. Raises RequestError 401 or 429."""
        caller = self._caller(authorization)
        if self._limit is not None:
            await self._limit.take(caller)
        return caller or ANONYMOUS

    def _caller(self, authorization: str | None) -> str:
        """The caller's id; empty where no key is required."""
        tenants = self._tenants
        if not tenants:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        raw = token.strip(" \t").encode("latin-1", "replace")  # the bytes as sent: ASGI decodes headers as Latin-1
        given = hashlib.sha256(raw).hexdigest()
        found = ""
        for known in tenants:  # compare all, so that timing leaks nothing
            if hmac.compare_digest(known, given):
                found = known
        if not found or scheme.lower() != "bearer":
            raise RequestError(401, "invalid_api_key", "API key required: Authorization: Bearer KEY")
        return caller_id(found, tenants[found])
