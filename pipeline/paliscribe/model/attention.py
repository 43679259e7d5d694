"""Grouped-query attention: over whole prompts (prefill) and over KV-cache slots (decode).

Both give each request shapes of its own. A prompt's attention is one product per request at its exact length, so it
needs no mask. A decode step reads the keys of all rows together, in chunks of fixed size, and sums the chunks' results
in order: chunks beyond a request's end add exactly zero, so the length of other requests does not matter.
"""

import inspect
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Attention scores (queries times keys) computed at a time: bounded by a core's caches on a CPU (docs/benchmarks.md), by
# memory on a GPU.
CPU_SCORES, GPU_SCORES = 2**20, 2**28
CPU_KEYS, GPU_KEYS = 1, 16  # keys are padded to a multiple of this: tensor cores need aligned rows
QUERY_MULTIPLE = 64  # queries per part are a multiple of this


class Spans:
    """Row ranges of the requests in a packed batch: first row and one after the last, in order."""

    def __init__(self, bounds: Sequence[tuple[int, int]], total: int, device: torch.device) -> None:
        self.bounds, self.total = bounds, total
        self.ends = [*(start for start, _ in bounds[1:]), total]  # where the padding rows after each request end
        self._device = device

    @cached_property
    def edges(self) -> Tensor:
        """Sequence boundaries for variable-length kernels, int32 [sequences + 1]; padding rows are sequences too."""
        flat = {0, self.total, *(edge for bound in self.bounds for edge in bound)}
        edges = torch.tensor(sorted(flat), dtype=torch.int32)
        return edges.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else edges

    @cached_property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        behind = (end - bound[1] for end, bound in zip(self.ends, self.bounds, strict=True))
        return max(*(end - start for start, end in self.bounds), *behind)


def prefill_attention(
    query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float, softcap: float | None
) -> Tensor:
    """Bidirectional attention within each prompt: rows [m, heads, head_dim] -> [m, heads * head_dim].

    The output of padding rows is undefined.
    """
    if softcap is None and query.dtype != torch.float32 and query.is_cuda and (together := varlen_attention()):
        # No mask, no padding; num_splits=1 makes a sequence's result independent of the others, as torch documents.
        edges, most = spans.edges, spans.longest
        kinds = {"scale": scaling, "num_splits": 1, "enable_gqa": True}
        joined: Tensor = together(query, key, value, edges, edges, most, most, **kinds)
        return joined.flatten(1)
    found = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for (start, end), after in zip(spans.bounds, spans.ends, strict=True):
        found[start:end] = full_attention(query[start:end], key[start:end], value[start:end], scaling, softcap)
        found[end:after] = 0
    return found.flatten(1)


@cache
def varlen_attention() -> Any:
    """`torch.nn.attention.varlen.varlen_attn` if it exists and takes `num_splits`, else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "num_splits" in inspect.signature(varlen_attn).parameters else None


def full_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Unmasked attention: queries [q, heads, head_dim] over keys [n, kv_heads, head_dim] -> [q, heads, head_dim].

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
    parts = torch.split(folded, max(QUERY_MULTIPLE, most // QUERY_MULTIPLE * QUERY_MULTIPLE), dim=1)
    done = [product(_weights(product(part, keys), scaling, softcap, hidden).to(value.dtype), values) for part in parts]
    found = torch.cat(done, dim=1) if len(done) > 1 else done[0]
    return found.view(shared, count, heads // shared, width).transpose(0, 1).reshape(count, heads, width)


def decode_attention(
    query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, chunk: int, scaling: float, softcap: float | None
) -> Tensor:
    """One query per slot, [r, heads, head_dim], over keys [r, kv_heads, length, head_dim] -> [r, heads * head_dim].

    `hidden`: bool [r, 1, 1, length], True for masked keys. Masked keys may hold anything; their values must be finite.
    `chunk` divides `length`.
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
    """Softmax over the last dimension in float32, as in transformers; `hidden` keys get weight 0."""
    scores = scores.mul_(scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if hidden is not None:
        scores = scores.masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32)
