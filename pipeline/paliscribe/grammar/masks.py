"""Decodes PaliGemma's mask codes to pixels, in numpy.

Sixteen codebook indices select vectors of a 4x4 grid. A small convolutional decoder turns the grid into a 64x64 mask
with values of about -1 to 1. The mask is resized into its box; values above 0 are foreground. The decoder is the
authors' `vae-oid.npz` (big_vision, `proj/paligemma`). Its weights have PyTorch's layout: [out, in, 3, 3] for
convolutions, [in, out, 4, 4] for transposed ones. They are not part of this package, and this code has not been tested
with them, but with random weights of the same shapes and with the demo's own decoder.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paliscribe.errors import UsageError
from paliscribe.records import Box, Mask

Floats = npt.NDArray[np.float32]
CODES = 128
CODEBOOK = "_vq_vae._embedding"
RESIDUAL, UP = ("decoder.2.net", "decoder.3.net"), ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
FIRST, LAST = "decoder.0", "decoder.12"


class MaskDecoder:
    """The mask decoder."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._weights = {name: np.asarray(array, dtype=np.float32) for name, array in weights.items()}

    @classmethod
    def from_npz(cls, data: bytes) -> "MaskDecoder":
        """Load `vae-oid.npz`. Raises UsageError for any other content."""
        if not data.startswith(b"PK"):  # the signature of zip files, which .npz files are
            raise UsageError("the mask decoder is not an .npz file of arrays")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                weights = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            raise UsageError("the mask decoder is not an .npz file of arrays") from None
        shapes = _shapes(weights[CODEBOOK].shape[-1] if weights.get(CODEBOOK, np.zeros(())).ndim == 2 else 0)
        for name, shape in shapes.items():
            if name not in weights:
                raise UsageError(f"the mask decoder has no {name!r}: it is not PaliGemma's vae-oid.npz")
            if weights[name].shape != shape or weights[name].dtype.kind != "f":
                found = f"{weights[name].dtype} {list(weights[name].shape)}, not float {list(shape)}"
                raise UsageError(f"the mask decoder's {name!r} is {found}: it is not PaliGemma's vae-oid.npz")
        return cls({name: weights[name] for name in shapes})  # the file also holds the encoder

    def decode(self, codes: npt.NDArray[np.integer[Any]]) -> Floats:
        """int [n, 16] (0..127) -> float32 [n, 64, 64], about [-1, 1], not clipped.

        Raises ValueError for another shape or range.
        """
        if codes.ndim != 2 or codes.shape[1] != 16 or ((codes < 0) | (codes >= CODES)).any():
            raise ValueError(f"mask codes must be [n, 16] in 0..{CODES - 1}, not {list(codes.shape)}")
        codebook = self._weights[CODEBOOK]
        grid = codebook[codes].reshape(len(codes), 4, 4, codebook.shape[1]).transpose(0, 3, 1, 2)
        out = np.maximum(self._conv(grid, FIRST), 0)
        for name in RESIDUAL:
            inner = np.maximum(self._conv(out, f"{name}.0", 1), 0)
            inner = np.maximum(self._conv(inner, f"{name}.2", 1), 0)
            out = out + self._conv(inner, f"{name}.4")
        for name in UP:
            out = np.maximum(self._up(out, name), 0)
        return self._conv(out, LAST)[:, 0]

    def fill(self, mask: Mask) -> Mask:
        """The mask with its RLE, over the whole original image."""
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
        """Transposed 4x4 convolution, stride 2, padding 1: [n, in, h, w] -> [n, out, 2h, 2w]."""
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
    """Resize float32 [64, 64] bilinearly into its box: bool [height, width], True for foreground.

    The box must be within the image. Its edges are rounded to pixels, as the authors do before they encode a mask. A
    box that is empty after rounding has no foreground.
    """
    out = np.zeros((height, width), dtype=np.bool_)
    left, top, right, bottom = (round(edge) for edge in (box.x_min, box.y_min, box.x_max, box.y_max))
    if right > left and bottom > top:
        rows, columns = _bilinear(bottom - top, square.shape[0]), _bilinear(right - left, square.shape[1])
        out[top:bottom, left:right] = rows @ square @ columns.T > 0
    return out


def _bilinear(to: int, size: int) -> Floats:
    """Weights [to, size] of a resize along one axis. Antialiased when shrinking, like Pillow, which the authors use."""
    centres = (np.arange(to) + 0.5) * size / to
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(size / to, 1)
    weights = np.maximum(1 - distances, 0)
    scaled: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the decoder's arrays by name. `width`: size of a codebook vector."""
    layers: dict[str, tuple[int, ...]] = {FIRST: (128, width, 1, 1), LAST: (1, 16, 1, 1)}
    for name in RESIDUAL:
        layers |= {f"{name}.0": (128, 128, 3, 3), f"{name}.2": (128, 128, 3, 3), f"{name}.4": (128, 128, 1, 1)}
    channels = ((128, 128), (128, 64), (64, 32), (32, 16))
    layers |= {name: (inside, outside, 4, 4) for name, (inside, outside) in zip(UP, channels, strict=True)}
    shapes: dict[str, tuple[int, ...]] = {CODEBOOK: (CODES, width)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[1] if name in UP else shape[0],)}
    return shapes


def encode_rle(mask: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Encode bool [h, w] as COCO's uncompressed RLE: column-major counts, starting with background."""
    flat = mask.flatten(order="F")
    if not flat.size:
        return ()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return tuple([0, *counts] if flat[0] else counts)


def decode_rle(counts: tuple[int, ...], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode to bool [height, width]. Raises ValueError if the counts do not add up to height * width."""
    if sum(counts) != height * width:
        raise ValueError(f"run lengths cover {sum(counts)} pixels of {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")
