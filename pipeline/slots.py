"""Keys and values of the requests under way: a fixed number of slots, each as long as a request may get.

A slot holds one request's tokens from its start: image, prompt, answer. A prefill writes a group's slots; a decode
step reads the first `rows` slots at once, each at its own length, and appends one token to each. The modules of
transformers meet this memory twice: as the cache that a layer updates, and as the attention that it then calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

ATTENTION = "paliscribe"  # the name under which transformers finds `attention`
# Scores that are held at a time, queries times keys: what a core's caches hold (docs/benchmarks.md), and what a GPU has
# room for beside all else.
CPU_SCORES, GPU_SCORES = 2**20, 2**28
QUERIES = 64  # their number in a part is a multiple of this
ROW_STEP = 4  # rows of a decode step that is not recorded are a multiple of this, as `ALIGNED` asks
LENGTH_STEP = 64  # a decode step looks at lengths rounded up to this: few shapes, and all of them well aligned


class Slots:
    """The memory: for each layer, keys and values [slots, kv_heads, capacity, head_dim]."""

    def __init__(self, config: Any, count: int, capacity: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.capacity = count, -(-capacity // LENGTH_STEP) * LENGTH_STEP
        shape = (config.num_hidden_layers, 2, count, config.num_key_value_heads, self.capacity, config.head_dim)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)  # the last token of each, not yet decoded

    @staticmethod
    def bytes_each(config: Any, capacity: int, dtype: torch.dtype) -> int:
        """Bytes that one slot takes."""
        numbers = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        return int(numbers * -(-capacity // LENGTH_STEP) * LENGTH_STEP * dtype.itemsize)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a request's first `length` tokens to another slot."""
        self._memory[:, :, target, :, :length] = self._memory[:, :, source, :, :length]
        self.tokens[target] = self.tokens[source]

    def writing(self, slots: Tensor) -> "Writing":
        """A cache for the prefill of these slots, int64 [g]."""
        return Writing(self._memory, slots)

    def appending(self, positions: Tensor, length: int) -> "Appending":
        """A cache for a decode step of the first len(positions) slots, of which `length` tokens are looked at."""
        return Appending(self._memory, positions, length, torch.arange(len(positions), device=positions.device))


@dataclass(slots=True)
class Writing:
    """The cache of a prefill: what a layer computes goes into the slots, and is what it attends to."""

    memory: Tensor
    slots: Tensor

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values [g, kv_heads, n, head_dim] of a layer."""
        length = keys.shape[2]
        for place, new in ((0, keys), (1, values)):
            self.memory[layer, place, :, :, :length].index_copy_(0, self.slots, new)
        return keys, values


@dataclass(slots=True)
class Given:
    """The cache of a layer whose keys and values have been made already: what it makes of them is let go."""

    keys: Tensor
    values: Tensor

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What was given."""
        return self.keys, self.values


@dataclass(slots=True)
class Appending:
    """The cache of a decode step: one token joins each slot, and all of the slot is attended to."""

    memory: Tensor
    positions: Tensor  # int64 [rows]: where the new token goes
    length: int
    rows: Tensor  # int64 [rows]: 0, 1, 2, ...

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, kv_heads, 1, head_dim] of a layer; all that the rows then hold."""
        for place, new in ((0, keys), (1, values)):
            self.memory[layer, place][self.rows, :, self.positions] = new[:, :, 0]
        held = self.memory[layer, :, : len(self.rows), :, : self.length]
        return held[0], held[1]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention, [g, heads, n, head_dim] -> [g, n, heads, head_dim], under an additive mask.

    Keys and values are never repeated for the heads that share them: those heads are rows of one product.
    The mask is [g, 1, 1, length]: who may see a key does not depend on the query. On a CPU plain products are as fast
    as the fused kernel, whose last bits depend on the padding.
    """
    rows, heads, count, width = query.shape
    shared = key.shape[1]
    each = heads // shared
    if query.is_cuda and count > 1 and softcap is None:
        folded = query.reshape(rows * shared, each, count, width)
        keys, values = (kv.reshape(rows * shared, 1, -1, width).expand(-1, each, -1, -1) for kv in (key, value))
        mask = attention_mask.repeat_interleave(shared, 0).expand(-1, 1, count, -1)
        found = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    else:
        folded = query.reshape(rows, shared, each * count, width)
        most = (GPU_SCORES if query.is_cuda else CPU_SCORES) // (rows * shared * key.shape[2])
        parts = torch.split(folded, max(QUERIES, most // QUERIES * QUERIES), dim=2)
        done = [_plain(part, key, value, attention_mask, scaling, softcap) for part in parts]
        found = torch.cat(done, dim=2) if len(done) > 1 else done[0]
    return found.reshape(rows, heads, count, width).transpose(1, 2).contiguous(), None


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Attention of some queries [g, kv_heads, m, head_dim]; softmax in float32, as transformers has it."""
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    return torch.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype) @ value


AttentionInterface.register(ATTENTION, attention)


def key_mask(lengths: Tensor, columns: int, dtype: torch.dtype, first: Tensor | None = None) -> Tensor:
    """Additive mask [g, 1, 1, columns]: keys `first` (inclusive, default 0) to `lengths` (exclusive) are seen."""
    column = torch.arange(columns, device=lengths.device)
    seen = column < lengths[:, None]
    if first is not None:
        seen = seen & (column >= first[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None]


def rounded(length: int, capacity: int) -> int:
    """A length as decode steps see it: rounded up, within the capacity."""
    return min(-(-length // LENGTH_STEP) * LENGTH_STEP, capacity)


def row_counts(slots: int, *, recorded: bool) -> Sequence[int]:
    """The numbers of rows that decode steps have, up to enough for all slots.

    Where steps are recorded they are few: 8, 16, 32, 64, ... Elsewhere every fourth number: an empty row costs as much
    as a live one.
    """
    step = 8 if recorded else ROW_STEP
    most = -(-slots // step) * step
    if not recorded:
        return range(step, most + step, step)
    counts = [step]
    while counts[-1] < most:
        counts.append(min(counts[-1] * 2, most))
    return counts
