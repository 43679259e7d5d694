"""Mask codes to pixels: the convolutions against torch, run lengths both ways."""

import io
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

from paliscribe.errors import UsageError
from paliscribe.grammar.masks import MaskDecoder, decode_rle, encode_rle, paste
from paliscribe.records import Box, Mask

torch.set_num_threads(1)


class Residual(nn.Module):
    """Two 3x3 convolutions and a 1x1 one beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(),
            nn.Conv2d(128, 128, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.net(x)
        return x + added


def reference() -> tuple[nn.Sequential, torch.Tensor, bytes]:
    """A decoder of the published shapes with random weights, as modules and as the file."""
    torch.manual_seed(3)
    ups: list[nn.Module] = []
    for inside, outside in ((128, 128), (128, 64), (64, 32), (32, 16)):
        ups += [nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
    decoder = nn.Sequential(nn.Conv2d(512, 128, 1), nn.ReLU(), Residual(), Residual(), *ups, nn.Conv2d(16, 1, 1))
    embedding = torch.randn(128, 512)
    arrays: dict[str, Any] = {f"decoder.{name}": value.detach().numpy() for name, value in decoder.named_parameters()}
    file = io.BytesIO()
    np.savez(file, **arrays | {"_vq_vae._embedding": embedding.numpy()})
    return decoder, embedding, file.getvalue()


def test_decoding_equals_torch() -> None:
    decoder, embedding, file = reference()
    codes = np.random.default_rng(1).integers(0, 128, (3, 16))
    with torch.inference_mode():
        grid = embedding[torch.from_numpy(codes)].reshape(3, 4, 4, 512).permute(0, 3, 1, 2)
        wanted = decoder(grid)[:, 0].numpy()
    found = MaskDecoder.from_npz(file).decode(codes)
    assert found.shape == (3, 64, 64) and found.dtype == np.float32
    assert MaskDecoder.from_npz(file).decode(codes[:0]).shape == (0, 64, 64)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted.std() > 0


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", b"PK\x03\x04broken"])
def test_files_that_are_something_else(data: bytes) -> None:
    with pytest.raises(UsageError, match="mask decoder"):
        MaskDecoder.from_npz(data)


def test_a_file_without_the_weights() -> None:
    file = io.BytesIO()
    np.savez(file, other=np.zeros(3))
    with pytest.raises(UsageError, match=r"_vq_vae\._embedding"):
        MaskDecoder.from_npz(file.getvalue())


@pytest.mark.parametrize("name", ["_vq_vae._embedding", "decoder.0.weight", "decoder.6.weight", "decoder.12.bias"])
@pytest.mark.parametrize("wrong", [np.zeros((2, 2, 1, 1)), np.zeros(()), np.array(["a"])])
def test_a_file_with_weights_of_another_shape(name: str, wrong: np.ndarray) -> None:
    with np.load(io.BytesIO(reference()[2])) as right:
        arrays = {key: right[key] for key in right.files}
    file = io.BytesIO()
    np.savez(file, **{**arrays, name: wrong})
    with pytest.raises(UsageError, match=re.escape(f"{name!r} is ")) as caught:
        MaskDecoder.from_npz(file.getvalue())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codes", [[0] * 15, [0] * 15 + [128], [0] * 15 + [-1]])
def test_codes_that_pick_nothing(codes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.127"):
        MaskDecoder.from_npz(reference()[2]).decode(np.array([codes]))


@given(st.integers(1, 150), st.integers(1, 150))
def test_a_mask_is_resized_as_pillow_resizes(wide: int, high: int) -> None:
    square = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
    wanted = np.asarray(Image.fromarray(square).resize((wide, high), Image.Resampling.BILINEAR))
    found = paste(square, Box("cat", 3, 2, 3 + wide, 2 + high), 200, 180)[2 : 2 + high, 3 : 3 + wide]
    clear = np.abs(wanted) > 1e-4  # rounding decides the rest
    assert (found == (wanted > 0))[clear].all()


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_run_lengths_both_ways(mask: np.ndarray) -> None:
    counts = encode_rle(mask)
    assert sum(counts) == mask.size
    assert sum(counts[1::2]) == mask.sum()
    assert (decode_rle(counts, *mask.shape) == mask).all()


def test_run_lengths_go_down_the_columns() -> None:
    assert encode_rle(np.array([[0, 1], [1, 1]], dtype=bool)) == (1, 3)
    assert encode_rle(np.array([[1, 0], [0, 0]], dtype=bool)) == (0, 1, 3)
    with pytest.raises(ValueError, match="cover 3 pixels of 4"):
        decode_rle((1, 2), 2, 2)


@given(st.integers(0, 40), st.integers(0, 30), st.integers(1, 40), st.integers(1, 30))
def test_a_full_mask_fills_its_box(left: int, top: int, wide: int, high: int) -> None:
    box = Box("cat", left, top, left + wide, top + high)
    found = paste(np.ones((64, 64), dtype=np.float32), box, 100, 80)
    wanted = np.zeros((80, 100), dtype=bool)
    wanted[top : top + high, left : left + wide] = True
    assert (found == wanted).all()


def test_half_a_mask_fills_half_its_box() -> None:
    half = np.concatenate([np.ones((64, 32)), -np.ones((64, 32))], axis=1).astype(np.float32)
    found = paste(half, Box("cat", 10, 10, 50, 30), 100, 80)
    assert found[10:30, 10:30].all() and not found[:, 30:].any()


def test_a_mask_is_filled_over_its_image() -> None:
    decoder = MaskDecoder.from_npz(reference()[2])
    filled = decoder.fill(Mask("cat", Box("cat", 5, 5, 45, 35), tuple(range(16)), 60, 80))
    assert filled.rle is not None and sum(filled.rle) == 60 * 80
    inside = decode_rle(filled.rle, 60, 80)
    assert not inside[:5].any() and not inside[:, :5].any() and not inside[35:].any() and not inside[:, 45:].any()
