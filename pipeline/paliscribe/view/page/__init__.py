"""The page of `paliscribe view`: one HTML document, made of the files beside this, and its headers."""

from pathlib import Path
from typing import Final

from paliscribe.online.page import COLOURS, restricted, styled

_FOLDER: Final = Path(__file__).parent
SCRIPTS: Final = ("draw", "wall", "boxes", "large", "start")  # in this order


def _read(*names: str) -> str:
    return "\n" + "".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


_STYLE: Final = COLOURS + _read("style.css")
_SCRIPT: Final = _read(*(f"{name}.js" for name in SCRIPTS))
HTML: Final = _read("page.html").lstrip().replace("{style}", _STYLE).replace("{script}", _SCRIPT)
HEADERS: Final = restricted(
    {
        "script-src": styled(_SCRIPT),
        "style-src": styled(_STYLE),
        "img-src": "'self' data:",
        "connect-src": "'self'",
    }
)
