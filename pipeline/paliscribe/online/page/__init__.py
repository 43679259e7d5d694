"""The web page at `/`: one HTML document, made of the files beside this, and headers that restrict it to this endpoint.

The pictures in `examples/` are scenes of the demo, number 376, 39 and 354 of its test split, drawn at twice their size.
"""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent
SCRIPTS: Final = ("calls", "pictures", "stage", "answers", "code", "start")  # in this order


def _read(*names: str) -> str:
    return "\n" + "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


COLOURS: Final = _read("colours.css")
_STYLE: Final = _read("colours.css", "style.css")
_SCRIPT: Final = _read(*(f"{name}.js" for name in SCRIPTS))
HTML: Final = _read("page.html").lstrip().replace("{style}", _STYLE).replace("{script}", _SCRIPT)
EXAMPLES: Final = {path.name: path.read_bytes() for path in sorted((_FOLDER / "examples").glob("*.jpg"))}


def headers(images: Iterable[str] = ()) -> dict[str, str]:
    """The headers of the page. `images`: allowed addresses of images, those of the web can be shown."""
    shown = [address.replace(";", "%3B").replace(",", "%2C") for address in images]
    return restricted(
        {
            "script-src": _hash(_SCRIPT),
            "style-src": _hash(_STYLE),
            "img-src": " ".join(
                ["'self' data: blob:", *(each for each in shown if each.isascii() and each[:4] == "http")]
            ),
            "connect-src": "'self'",
        }
    )


def restricted(allowed: dict[str, str]) -> dict[str, str]:
    """Headers under which a browser loads nothing but what `allowed` names; its keys are those of the policy."""
    policy = {
        "default-src": "'none'",
        **allowed,
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",  # with `trusted-types`: text cannot become markup
        "trusted-types": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # a cached page of an earlier release may not match this API
    }


def styled(style: str) -> str:
    """The policy's source of an inline style."""
    return _hash(style)
