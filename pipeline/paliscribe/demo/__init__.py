"""The embedded demo: synthetic scenes and a tiny PaliGemma trained on them."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""Folder of the demo checkpoint. It loads like any other PaliGemma checkpoint."""

MASK_DECODER = CHECKPOINT / "mask-decoder.npz"
"""The checkpoint's decoder of masks, in the format of the authors' `vae-oid.npz`."""

TASKS = ("caption", "ocr", "answer", "detect", "segment")
"""Kinds of task that the checkpoint is trained on."""

LANGUAGES = ("en",)
"""Languages that the checkpoint answers in."""

KNOWS = (
    "The demo model knows drawn circles, squares, stars and triangles, their colours, and a few large digits or "
    "capitals. It does not know photographs."
)
"""What the checkpoint knows, told to those who ask it."""

__all__ = ["CHECKPOINT", "KNOWS", "LANGUAGES", "MASK_DECODER", "TASKS"]
