"""Paliscribe: annotate image collections of any size with PaliGemma."""

__version__ = "0.1.0"
