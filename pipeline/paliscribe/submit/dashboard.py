"""Checks a cluster's dashboard without Ray, which takes a second to import and minutes to give up."""

import http.client
import json
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from paliscribe.errors import RunError, UsageError
from paliscribe.pool.joining import MODE, auth_mode, find_token, remedy
from paliscribe.storage import redacted

ADDRESS = "RAY_API_SERVER_ADDRESS"
ANSWER = 5.0  # seconds: the dashboard of a busy head takes some
MOST = 10_000  # bytes of an answer that are read


def dashboard(address: str | None) -> str:
    """The URL of a dashboard, by default that of RAY_API_SERVER_ADDRESS. Raises UsageError."""
    found = (address or os.environ.get(ADDRESS, "")).strip().rstrip("/")
    if not found:
        raise UsageError(f"no cluster address: set --address http://HOST:8265 (the dashboard), or {ADDRESS}")
    if "://" not in found:
        found = f"http://{found}"
    try:
        parts = urlsplit(found)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and found.isprintable()
    except ValueError:
        valid = False
    if not valid or " " in found:
        raise UsageError(f"address {redacted(found)}: not a dashboard URL; expected http://HOST:8265")
    if "@" in parts.netloc:
        raise UsageError(f"address {redacted(found)}: remove user and password; pass the token by RAY_AUTH_TOKEN_PATH")
    return found


def check_dashboard(address: str) -> None:
    """Raise RunError unless a Ray dashboard answers at this address, or if it rejects the token.

    If it requires a token, RAY_AUTH_MODE is set, which Ray reads when it is imported. The token is sent only to who
    asks for one.
    """
    mode = auth_mode()
    token, place = find_token() if mode != "disabled" else ("", "")
    if _admits(address, token if mode == "token" else ""):
        return
    if token and mode != "token" and _admits(address, token):
        os.environ[MODE] = "token"
        return
    raise RunError(f"the dashboard at {address}: {remedy(mode, place)}")


class _Staying(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would go with it."""

    def redirect_request(self, *_: object) -> None:
        """See HTTPRedirectHandler."""


def _admits(address: str, token: str) -> bool:
    """Whether the dashboard admits a call with this token. Raises RunError if none answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    call = urllib.request.Request(f"{address}/api/version", headers=headers)
    try:
        with urllib.request.build_opener(_Staying).open(call, timeout=ANSWER) as reply:
            status, body = reply.status, reply.read(MOST)
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, b""
    except TimeoutError:
        raise RunError(f"no Ray dashboard responds at {address}: no answer within {ANSWER:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"no Ray dashboard responds at {address}: {_reason(error)}") from None
    if status in (401, 403):
        return False
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "ray_version" not in found:
        words = f"another web server answers there (HTTP {status}); the dashboard's port is 8265 by default"
        raise RunError(f"the dashboard at {address}: {words}")
    return True


def _reason(error: Exception) -> str:
    """Why there was no answer, in words."""
    inner = getattr(error, "reason", error)  # urllib wraps what fails before the answer
    if isinstance(inner, TimeoutError):
        return f"no answer within {ANSWER:g} s"
    if isinstance(inner, http.client.HTTPException | ConnectionResetError):
        return "what answers there is no web server"
    return str(getattr(inner, "strerror", None) or inner)[:200]
