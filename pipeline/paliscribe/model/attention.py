"""Grouped-query attention in its two places: over a whole prompt, and over the slots.

In both a request's shapes are its own. A prompt's attention is a product of that request alone, at its exact length,
so it needs no mask. A decode step looks at the keys of all rows at once, but in chunks of fixed size, and adds up what
they give in their order: chunks beyond a request's end add exactly nothing, however far its companions reach.
"""

import inspect
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Scores that are held at a time, queries times keys: what a core's caches hold (docs/benchmarks.md), and what a GPU has
# room for beside all else.
CPU_SCORES, GPU_SCORES = 2**20, 2**28
CPU_KEYS, GPU_KEYS = 1, 16  # keys of plain products are filled up to a multiple of this: tensor cores want aligned rows
QUERIES = 64  # their number in a part is a multiple of this


class Spans:
    """Whose rows are whose: of each request its first row and the one after its last, in order."""

    def __init__(self, bounds: Sequence[tuple[int, int]], total: int, device: torch.device) -> None:
        self.bounds, self.total = bounds, total
        self.ends = [*(start for start, _ in bounds[1:]), total]  # where the rows that fill up behind each request end
        self._device = device

    @cached_property
    def edges(self) -> Tensor:
        """Where sequences begin and end, for kernels that take them end to end; rows that fill up are sequences too."""
        flat = {0, self.total, *(edge for bound in self.bounds for edge in bound)}
        edges = torch.tensor(sorted(flat), dtype=torch.int32)
        return edges.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else edges

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        behind = (end - bound[1] for end, bound in zip(self.ends, self.bounds, strict=True))
        return max(*(end - start for start, end in self.bounds), *behind)


def over_prompts(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float, softcap: float | None
) -> Tensor:
    """Every position of a prompt sees every other: rows [m, heads, head_dim] -> [m, heads * head_dim].

    What comes out of rows that belong to nobody is not to be read.
    """
    if softcap is None and query.dtype != torch.float32 and query.is_cuda and (together := variable_length()):
        # No mask, no padding; one split makes a sequence's numbers its own, as torch's documentation says.
        edges, most = spans.edges, spans.longest
        kinds = {"scale": scaling, "num_splits": 1, "enable_gqa": True}
        joined: Tensor = together(query, key, value, edges, edges, most, most, **kinds)
        return joined.flatten(1)
    found = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for (start, end), after in zip(spans.bounds, spans.ends, strict=True):
        found[start:end] = whole(query[start:end], key[start:end], value[start:end], scaling, softcap)
        found[end:after] = 0
    return found.flatten(1)


@cache
def variable_length() -> Any:
    """`torch.nn.attention.varlen.varlen_attn`, where it is there and can be told not to split; else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "num_splits" in inspect.signature(varlen_attn).parameters else None


def whole(query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Queries [q, heads, head_dim] that all see all keys [n, kv_heads, head_dim] -> [q, heads, head_dim].

    On a CPU plain products in parts are faster than the fused kernel (docs/benchmarks.md).
    """
    count, heads, width = query.shape
    if query.is_cuda and softcap is None:
        queries, keys, values = (part.transpose(0, 1)[None] for part in (query, key, value))
        fused = functional.scaled_dot_product_attention(queries, keys, values, scale=scaling, enable_gqa=True)
        return fused[0].transpose(0, 1)
    hidden, length, shared = None, len(key), key.shape[1]
    if spare := -length % (GPU_KEYS if query.is_cuda else CPU_KEYS):
        key, value = (functional.pad(part, (0, 0, 0, 0, 0, spare)) for part in (key, value))
        hidden = torch.arange(length + spare, device=key.device) >= length
    keys, values = key.permute(1, 2, 0), value.transpose(0, 1)
    folded = query.view(count, shared, -1, width).transpose(0, 1).reshape(shared, -1, width)
    most = (GPU_SCORES if query.is_cuda else CPU_SCORES) // (shared * len(key))
    parts = torch.split(folded, max(QUERIES, most // QUERIES * QUERIES), dim=1)
    done = [product(_weights(product(part, keys), scaling, softcap, hidden).to(value.dtype), values) for part in parts]
    found = torch.cat(done, dim=1) if len(done) > 1 else done[0]
    return found.view(shared, count, heads // shared, width).transpose(0, 1).reshape(count, heads, width)


def over_slots(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, chunk: int, scaling: float, softcap: float | None
) -> Tensor:
    """One query a slot, [r, heads, head_dim], over keys [r, kv_heads, length, head_dim] -> [r, heads * head_dim].

    `hidden`: bool [r, 1, 1, length], the keys that each does not see: they may be anything, their values are numbers.
    `chunk` divides the length.
    """
    rows, shared, length, width = keys.shape
    folded = query.reshape(rows * shared, -1, width)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    steps = range(0, length, chunk)
    scores = [product(folded, keys[:, at : at + chunk].transpose(1, 2)) for at in steps]
    joined = torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0]
    weights = _weights(joined.view(rows, shared, -1, length), scaling, softcap, hidden).to(values.dtype).flatten(0, 1)
    found = product(weights[..., :chunk], values[:, :chunk])
    if length > chunk:
        found = found.float()
        for at in steps[1:]:
            found += product(weights[..., at : at + chunk], values[:, at : at + chunk])
    return found.to(values.dtype).view(rows, -1)


def product(left: Tensor, right: Tensor) -> Tensor:
    """[b, m, k] x [b, k, n]."""
    return torch.bmm(left, right)


def _weights(scores: Tensor, scaling: float, softcap: float | None, hidden: Tensor | None = None) -> Tensor:
    """Softmax over the last dimension in float32, as transformers has it; `hidden` keys get nothing."""
    scores = scores.mul_(scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if hidden is not None:
        scores = scores.masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32)
