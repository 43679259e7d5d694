"""The web page at `/`: a single HTML file, with headers that restrict it to this endpoint."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Final

HTML: Final = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """Content-Security-Policy hashes of the page's inline elements with this tag."""
    inline = re.findall(f"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    digests = [hashlib.sha256(content.encode()).digest() for content in inline]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


POLICY: Final = {
    "default-src": "'none'",
    "script-src": _hashes("script"),
    "style-src": _hashes("style"),
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "require-trusted-types-for": "'script'",  # with `trusted-types`: text cannot become markup
    "trusted-types": "'none'",
}
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a cached page of an earlier release may not match this API
}
