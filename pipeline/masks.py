"""PaliGemma's mask codes to pixels, in numpy.

Sixteen codebook indices pick vectors of a 4x4 grid, which a small convolutional decoder turns into a 64x64 mask in
[-1, 1]; resized into its box, what is above 0 is foreground. The decoder is the authors' `vae-oid.npz` (big_vision,
`proj/paligemma`), whose convolution weights lie as PyTorch lays them: [out, in, 3, 3], and [in, out, 4, 4] for the
transposed ones. Those weights are not part of this package, and this code has been run on weights of the same shapes
only.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.records import Box, Mask

Floats = npt.NDArray[np.float32]
CODEBOOK = "_vq_vae._embedding"
RESIDUAL, UP = ("decoder.2.net", "decoder.3.net"), ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
FIRST, LAST = "decoder.0", "decoder.12"


class MaskDecoder:
    """The decoder of mask codes."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._weights = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}

    @classmethod
    def from_npz(cls, data: bytes) -> "MaskDecoder":
        """Read the authors' file. Raises UsageError if it is something else."""
        if not data.startswith(b"PK"):  # what every .npz, a zip file, begins with
            raise UsageError("the mask decoder is not an .npz file of arrays")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                weights = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            raise UsageError("the mask decoder is not an .npz file of arrays") from None
        wanted = [CODEBOOK, f"{FIRST}.weight", f"{LAST}.weight", *(f"{name}.weight" for name in UP)]
        wanted += [f"{name}.{layer}.weight" for name in RESIDUAL for layer in (0, 2, 4)]
        if missing := [name for name in wanted if name not in weights]:
            raise UsageError(f"the mask decoder has no {missing[0]!r}: it is not PaliGemma's vae-oid.npz")
        return cls(weights)

    def decode(self, codes: npt.NDArray[np.integer[Any]]) -> Floats:
        """int [n, 16] (0..127) -> float32 [n, 64, 64] in [-1, 1]."""
        grid = self._weights[CODEBOOK][codes].reshape(len(codes), 4, 4, -1).transpose(0, 3, 1, 2)
        out = np.maximum(self._conv(grid, FIRST), 0)
        for name in RESIDUAL:
            inner = np.maximum(self._conv(out, f"{name}.0", 1), 0)
            inner = np.maximum(self._conv(inner, f"{name}.2", 1), 0)
            out = out + self._conv(inner, f"{name}.4")
        for name in UP:
            out = np.maximum(self._up(out, name), 0)
        return np.clip(self._conv(out, LAST)[:, 0], -1, 1)

    def fill(self, mask: Mask) -> Mask:
        """The mask with its run lengths over the whole original image."""
        square = self.decode(np.asarray([mask.codes]))[0]
        return replace(mask, rle=encode_rle(paste(square, mask.box, mask.width, mask.height)))

    def _conv(self, x: Floats, name: str, padding: int = 0) -> Floats:
        """[n, in, h, w] -> [n, out, h, w] for 1x1 (padding 0) and 3x3 (padding 1)."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
        out: Floats = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True) + bias[None, :, None, None]
        return out

    def _up(self, x: Floats, name: str) -> Floats:
        """Transposed 4x4 convolution of stride 2 and padding 1: [n, in, h, w] -> [n, out, 2h, 2w]."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        n, _, h, w = x.shape
        spread = np.zeros((n, weight.shape[1], 2 * h + 2, 2 * w + 2), dtype=np.float32)
        for i in range(4):
            for j in range(4):
                spread[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += np.einsum(
                    "nchw,co->nohw", x, weight[:, :, i, j], optimize=True
                )
        return spread[:, :, 1:-1, 1:-1] + bias[None, :, None, None]


def paste(square: Floats, box: Box, width: int, height: int) -> npt.NDArray[np.bool_]:
    """float32 [64, 64] resized bilinearly into its box: bool [height, width], True for foreground."""
    out = np.zeros((height, width), dtype=np.bool_)
    left, top = round(box.x_min), round(box.y_min)
    right, bottom = min(round(box.x_max), width), min(round(box.y_max), height)
    if right <= left or bottom <= top:
        return out
    rows, columns = _samples(bottom - top, square.shape[0]), _samples(right - left, square.shape[1])
    (r0, r1, rf), (c0, c1, cf) = rows, columns
    upper = square[r0][:, c0] * (1 - cf) + square[r0][:, c1] * cf
    lower = square[r1][:, c0] * (1 - cf) + square[r1][:, c1] * cf
    out[top:bottom, left:right] = upper * (1 - rf[:, None]) + lower * rf[:, None] > 0
    return out


def _samples(to: int, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Where `to` pixel centres fall among `size`: the two neighbours and the weight of the second."""
    at = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    first = np.floor(at).astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (at - first).astype(np.float32)


def encode_rle(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """COCO's uncompressed run lengths: column by column, background first. bool [h, w] -> counts."""
    flat = mask.flatten(order="F")
    if not flat.size:
        return ()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return tuple([0, *counts] if flat[0] else counts)


def decode_rle(counts: tuple[int, ...], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Back to bool [height, width]. Raises ValueError if the counts do not cover it."""
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")
