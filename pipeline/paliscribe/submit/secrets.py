"""Rejects secrets in submitted jobs: Ray shows a job's environment to everyone with access to the dashboard."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

from paliscribe.errors import UsageError
from paliscribe.storage import redacted

AWS = "AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE, AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE, or the nodes' own role"
REFERENCES = {  # prefix of a secret variable's name -> what to use instead
    "AWS_": AWS,
    "HF_": "HF_TOKEN_PATH, which names a file on every node",
    "HUGGING": "HF_TOKEN_PATH, which names a file on every node",
    "RAY_": "RAY_AUTH_TOKEN_PATH, which names a file; the cluster's nodes have the token already",
    "PALISCRIBE_": "the endpoint's `keys` file; a run needs no keys",
}
OTHERS = "a file on every node, and a variable with its path"
SECRET = re.compile(
    r"(.*[_-])?(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|KEYS?|KEY_ID|CREDENTIALS?|APIKEYS?|SAS|COOKIE)", re.I
)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
SIGNED = re.compile(
    r"sig|key|auth|hmac|.*(signature|token|secret|passw|credential|access[_-]?key|api[_-]?key|authorization).*", re.I
)


def variables(given: Sequence[str]) -> dict[str, str]:
    """Environment variables from `NAME=VALUE`, or `NAME` for the local value. Raises UsageError for secrets."""
    found = {}
    for item in given:
        name, mark, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env {name!r}: not a valid variable name; expected NAME=VALUE or NAME")
        if SECRET.fullmatch(name):
            words = next((words for start, words in REFERENCES.items() if name.upper().startswith(start)), OTHERS)
            raise UsageError(f"--env {name}: secret rejected, as the dashboard shows a job's environment; use {words}")
        if not mark and name not in os.environ:
            raise UsageError(f"--env {name}: not set in this environment; use {name}=VALUE")
        found[name] = value if mark else os.environ[name]
        refuse_secrets(found[name], f"--env {name}")
    return found


def refuse_secrets(values: Any, source: str) -> None:
    """Raise UsageError if any text in `values` contains an address with a user, a password or a signature."""
    for key, text in _texts(values, ""):
        for address in ADDRESS.findall(text):
            if _is_secret(address):
                raise UsageError(
                    f"{source}{': ' if key else ''}{key}: {redacted(address)} contains a user, a password or a "
                    f"signature, which would be stored on the cluster; remove it, and pass credentials by {AWS}"
                )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, key)


def _is_secret(address: str) -> bool:
    name, _, rest = address.partition("://")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        return True
    query = path.partition("#")[0].partition("?")[2] if name.lower() in ("http", "https") else ""
    return any(SIGNED.fullmatch(field) for field, _ in parse_qsl(query, keep_blank_values=True))
