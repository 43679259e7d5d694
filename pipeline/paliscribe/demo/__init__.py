"""The embedded demo: synthetic scenes and a tiny PaliGemma trained on them."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the demo checkpoint. It loads like any other PaliGemma checkpoint."""

__all__ = ["CHECKPOINT"]
