"""The shape of an error reply and of a request's id. Serve's proxies import it too, so it loads nothing else."""

import uuid
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from paliscribe.errors import RequestError

ID_HEADER = "x-request-id"
MAX_ID = 64  # characters of a caller's request id
MAX_MESSAGE, MAX_FIELD = 1000, 100  # characters of an error's message, which may quote the request, and of its field


def clean_id(given: Sequence[bytes]) -> str:
    """The id of a request: the caller's, escaped and shortened, or a new one. Duplicates count as absent.

    Cleaning it again changes nothing.
    """
    text = quote(given[0][:MAX_ID].decode("latin-1"), safe="%") if len(given) == 1 else ""
    return text[:MAX_ID] or uuid.uuid4().hex


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's JSON shape."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    field = None if error.field is None else replace_surrogates(error.field[:MAX_FIELD])
    message = replace_surrogates(str(error)[:MAX_MESSAGE])
    return {"error": {"message": message, "type": kind, "param": field, "code": error.code}}


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON and forms can contain and UTF-8 cannot encode, by `?`."""
    return text.encode("utf-8", "replace").decode()
