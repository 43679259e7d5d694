"""The embedded demo: scenes made here, and a tiny PaliGemma trained on them."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the demo checkpoint, loaded like any other PaliGemma."""

__all__ = ["CHECKPOINT"]
