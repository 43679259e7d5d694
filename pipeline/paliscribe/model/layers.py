"""Decoder layers and the encoder's attention: transformers' weights, our computation.

A layer is split at attention, the only part that mixes rows: `before` and `after` work on rows, one per token, of any
number of requests. Query, key and value are one fused product, gate and up another. `attention` has the part between.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.Module):
    """Gemma's RMS norm, x / rms(x) * (1 + weight) in float32, in one call instead of seven."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.eps = float(original.eps)
        self.scale = nn.Parameter(1.0 + original.weight.detach().float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and dtype."""
        normed = functional.rms_norm(hidden.float(), self.scale.shape, self.scale, self.eps)
        return normed.to(hidden.dtype)


class Gelu(nn.Module):
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))): Hendrycks and Gimpel 2016, "Gaussian Error Linear Units".

    torch's CPU kernel rounds differently for elements that do not fill a vector, and threads may split a tensor within
    a vector. Neither happens with at most two threads and a width divisible by 32. Otherwise the formula runs in
    separate steps that round the same everywhere.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.even = width % 32 == 0

    def forward(self, rows: Tensor) -> Tensor:
        """[..., width] -> the same shape and dtype."""
        if rows.is_cuda or (self.even and torch.get_num_threads() <= 2):
            return functional.gelu(rows, approximate="tanh")
        wide = rows.float()
        inner = wide.square().mul_(0.044715).add_(1).mul_(wide).mul_(math.sqrt(2 / math.pi))
        return torch.tanh(inner).add_(1).mul_(wide).mul_(0.5).to(rows.dtype)


def reproducible_activation(activation: nn.Module, width: int) -> nn.Module:
    """`Gelu` in place of GELUTanh, for rows of this width; other activations unchanged."""
    from transformers.activations import GELUTanh  # it loads much that other processes do not need

    return Gelu(width) if isinstance(activation, GELUTanh) else activation


class Fused(nn.Module):
    """Several linear layers of the same input as one product.

    The original weights become views of the fused weight, so nothing is stored twice.
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
        views = torch.split(self.weight.detach(), [part.out_features for part in parts])
        for part, view in zip(parts, views, strict=True):
            part.weight.data = view
        biases = [part.bias.detach() for part in parts if part.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., sum of out]."""
        return functional.linear(rows, self.weight, self.bias)

    def gated(self, rows: Tensor, activation: nn.Module) -> Tensor:
        """The first of two parts through `activation`, times the second: [..., out / 2]."""
        if rows.is_cuda:
            first, second = self(rows).chunk(2, dim=-1)
            joined: Tensor = activation(first) * second
            return joined
        first, second = self.weight.chunk(2)  # separate products on a CPU keep the intermediate in cache
        halved: Tensor = activation(functional.linear(rows, first))
        return halved.mul_(functional.linear(rows, second))


class Unfused(nn.Module):
    """Same interface as `Fused` for quantised weights, which cannot be concatenated."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., sum of out]."""
        return torch.cat([part(rows) for part in self.parts], dim=-1)

    def gated(self, rows: Tensor, activation: nn.Module) -> Tensor:
        """The first of two parts through `activation`, times the second: [..., out / 2]."""
        first, second = self.parts
        found: Tensor = activation(first(rows))
        return found.mul_(second(rows))


def _fuse(*parts: Any) -> Fused | Unfused:
    return Fused(parts) if all(type(part) is nn.Linear for part in parts) else Unfused(parts)


class Block(nn.Module):
    """One layer of a Gemma or Gemma 2 decoder, split at attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim = int(attention.head_dim)
        self.scaling = float(attention.scaling)
        self.softcap: float | None = getattr(attention, "attn_logit_softcapping", None)
        self.window: int | None = getattr(attention, "sliding_window", None)
        self.qkv = _fuse(attention.q_proj, attention.k_proj, attention.v_proj)
        self.kv_heads = attention.k_proj.out_features // self.head_dim
        self.out = attention.o_proj
        self.gate_up, self.down = _fuse(mlp.gate_proj, mlp.up_proj), mlp.down_proj
        self.activation = reproducible_activation(mlp.act_fn, mlp.down_proj.in_features)
        self.attention_norm = Norm(layer.input_layernorm)
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 2 also normalises each half's output
            self.attended_norm: nn.Module = Norm(layer.post_attention_layernorm)
            self.mlp_norm = Norm(layer.pre_feedforward_layernorm)
            self.fed_norm: nn.Module = Norm(layer.post_feedforward_layernorm)
        else:
            self.mlp_norm = Norm(layer.post_attention_layernorm)
            self.attended_norm = self.fed_norm = nn.Identity()

    def before(self, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [m, hidden], rotations [m, 1, head_dim] -> query, key, value [m, heads, head_dim], for attention."""
        made = self.qkv(self.attention_norm(hidden)).unflatten(-1, (-1, self.head_dim))
        turned, value = made[:, : -self.kv_heads], made[:, -self.kv_heads :]
        first, second = turned.chunk(2, dim=-1)
        turned = (turned * cosines).add_(torch.cat((-second, first), dim=-1).mul_(sines))
        return turned[:, : -self.kv_heads], turned[:, -self.kv_heads :], value

    def after(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """Attention output [m, heads * head_dim], layer input [m, hidden] -> [m, hidden]: all after attention."""
        hidden = self.attended_norm(self.out(attended)).add_(hidden)
        fed = self.down(self.gate_up.gated(self.mlp_norm(hidden), self.activation))
        found: Tensor = self.fed_norm(fed)
        return found.add_(hidden)


class VisionAttention(nn.Module):
    """Self-attention of a SigLIP encoder layer, with the interface that transformers' layer calls."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.head_dim, self.scaling = int(original.head_dim), float(original.scale)
        self.qkv = Fused([original.q_proj, original.k_proj, original.v_proj])
        self.out = original.out_proj

    def forward(self, hidden_states: Tensor, attention_mask: None = None, **_: Any) -> tuple[Tensor, None]:
        """[n, patches, hidden] -> the same shape."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.qkv(hidden_states).chunk(3, dim=-1)
        )
        found = functional.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return self.out(found.transpose(1, 2).flatten(2)), None
