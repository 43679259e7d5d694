"""Exports of published runs into the formats of other tools, and reviews that come back from them."""

from paliscribe.export.registry import FORMATS
from paliscribe.export.review import import_review
from paliscribe.export.run import export
from paliscribe.export.selecting import Filters

__all__ = ["FORMATS", "Filters", "export", "import_review"]
