"""Paliscribe: annotate image collections of any size with PaliGemma.

The public interface is what `__all__` names; all other modules are private and may change without notice. Importing the
package loads neither torch nor Ray; each function loads what it needs.

    import paliscribe

    run = paliscribe.annotate("photos/", ["caption en", "detect cat ; dog"], "annotated/")
    run.results().to_pandas()
    paliscribe.ask("photo.jpg", "caption en").text
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paliscribe.api.ask import ask
    from paliscribe.api.results import Results, load
    from paliscribe.api.run import Run, annotate
    from paliscribe.errors import PaliscribeError, RunError, UsageError
    from paliscribe.records import Box, Mask, Record

__version__ = "0.1.0"
__all__ = [
    "Box",
    "Mask",
    "PaliscribeError",
    "Record",
    "Results",
    "Run",
    "RunError",
    "UsageError",
    "annotate",
    "ask",
    "load",
]
_MODULES = {
    "api.ask": ("ask",),
    "api.results": ("Results", "load"),
    "api.run": ("Run", "annotate"),
    "errors": ("PaliscribeError", "RunError", "UsageError"),
    "records": ("Box", "Mask", "Record"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            found = getattr(import_module(f"paliscribe.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'paliscribe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
