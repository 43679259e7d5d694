"""Real handwritten digits, with disjoint splits for training, development and test.

The digits are the 8x8 images of scikit-learn's `load_digits`, which is the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0). Training and development
digits are read from scikit-learn. The held-out ones are a file next to this module, so that drawing a demo collection
does not need scikit-learn.
"""

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "dev", "test"]

HELD_OUT_FILE = Path(__file__).parent / "held_out_digits.npz"
SLICES: dict[Split, slice] = {"train": slice(0, 1400), "dev": slice(1400, 1500), "test": slice(1500, 1797)}


@lru_cache(maxsize=3)
def digits(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [n, 8, 8] with intensities 0..16, and their labels [n], 0..9."""
    if split == "test":
        with np.load(HELD_OUT_FILE) as stored:
            return stored["images"], stored["labels"]
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part = SLICES[split]
    return bunch.images[part].astype(np.uint8), bunch.target[part].astype(np.uint8)
