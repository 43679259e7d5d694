"""The parts of the model that are our own, against those of transformers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import demo_model, engine, images, random_model, requests
from transformers.activations import GELUTanh
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from paliscribe.config import ModelSpec
from paliscribe.model.layers import Gelu, Norm, reproducible_activation
from paliscribe.model.paligemma import choose_kernels, load
from paliscribe.model.shapes import Shapes, Sizes


@pytest.mark.parametrize("original", [GemmaRMSNorm, Gemma2RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_is_that_of_transformers(original: type[torch.nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs: Any = original(96).to(dtype)
    theirs.weight.data.normal_()
    hidden = torch.randn(4, 7, 96).to(dtype) * 5
    found, wanted = Norm(theirs)(hidden), theirs(hidden)
    assert found.dtype == dtype
    assert torch.allclose(found.float(), wanted.float(), rtol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_the_halves_of_a_layer_are_those_of_transformers(family: str) -> None:
    """Around an attention in which each row sees itself alone, so that it finds each row's value."""
    model, original = random_model(0, family)
    theirs, ours = original.model.language_model, model.network.model.language_model
    torch.manual_seed(0)
    hidden, positions = torch.randn(1, 6, 128), torch.arange(1, 7)[None]
    cosines, sines = theirs.rotary_emb(hidden, positions)
    mask = torch.full((1, 1, 6, 6), torch.finfo(torch.float32).min).masked_fill(torch.eye(6, dtype=torch.bool), 0)
    with torch.inference_mode():
        wanted = theirs.layers[1](hidden, position_embeddings=(cosines, sines), attention_mask=mask)[0]
        block = ours.layers[1]
        query, key, value = block.before(hidden[0], *(part[0, :, None] for part in (cosines, sines)))
        found = block.after(value.repeat_interleave(4 // block.kv_heads, 1).flatten(1), hidden[0])
        rotated = theirs.layers[1].self_attn.k_proj(theirs.layers[1].input_layernorm(hidden)).view(6, -1, 32)
    assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max())
    assert query.shape == (6, 4, 32) and key.shape == value.shape
    assert torch.allclose(key.norm(dim=-1), rotated.norm(dim=-1), rtol=1e-4), "a rotation keeps lengths"


def test_fused_weights_are_kept_once() -> None:
    model, original = random_model(2)
    block, layer = model.network.model.language_model.layers[0], original.model.language_model.layers[0]
    joined = torch.cat([layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight])
    assert torch.equal(block.qkv.weight, joined)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {
        "qkv", "out", "gate_up", "down", "attention_norm", "mlp_norm"
    }  # fmt: skip


def test_images_are_seen_as_transformers_sees_them() -> None:
    model, original = random_model(0)
    pixels = torch.from_numpy(np.stack(images(3)))
    with torch.inference_mode():
        wanted = original.get_image_features(pixels.permute(0, 3, 1, 2) / 127.5 - 1).pooler_output
    assert torch.allclose(model.embed_images(pixels), wanted, atol=1e-3 * wanted.abs().max())


@pytest.mark.full
def test_compiled_parts_answer_alike() -> None:
    """One size each, as every size is compiled anew: half a minute a size."""
    loaded = load(ModelSpec(), device="cpu")
    loaded._shapes = {torch.get_num_threads(): Shapes(Sizes((256,)), Sizes((8,)), Sizes((4,)))}
    loaded.compile()
    wanted = requests(6, max_tokens=6)
    assert [a.tokens for a in engine(loaded, slots=4).run(wanted)] == [
        a.tokens for a in engine(demo_model()).run(wanted)
    ]


def test_a_gpus_libraries_are_told_which_kernels_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are torch's own, but for one that only a build with CUDA has."""
    asked: list[str] = []
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", asked.append)
    matmul = torch.backends.cuda.matmul
    cudnn_attends: Callable[[], bool] = torch.backends.cuda.cudnn_sdp_enabled
    before = cudnn_attends(), torch.backends.cudnn.allow_tf32
    try:
        choose_kernels()
        assert not cudnn_attends() and not torch.backends.cudnn.allow_tf32
        assert not matmul.allow_bf16_reduced_precision_reduction and not matmul.allow_fp16_reduced_precision_reduction
        assert asked == ["cublaslt"]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("width", [384, 100])
def test_the_activation_is_that_of_transformers(width: int) -> None:
    """By torch's kernel or in steps, as threads and width have it."""
    torch.manual_seed(0)
    rows = torch.randn(64, width) * 3
    for dtype, near in ((torch.float32, 1e-6), (torch.bfloat16, 0.04)):
        wanted = GELUTanh()(rows.to(dtype))
        assert torch.allclose(Gelu(width)(rows.to(dtype)), wanted, atol=near)
    assert reproducible_activation(torch.nn.SiLU(), width).__class__ is torch.nn.SiLU
