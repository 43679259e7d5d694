"""The KV cache: a fixed number of slots, each with capacity for the longest request.

A slot holds one request's tokens from its start: image, prompt, answer. A prefill writes the slots of a group. A decode
step reads the first `rows` slots, each at its own length, and appends one token to each.
"""

from typing import Any

import torch
from torch import Tensor


class Slots:
    """Cache memory: per layer, keys and values [slots, kv_heads, capacity, head_dim]."""

    def __init__(
        self, config: Any, count: int, capacity: int, chunk: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`capacity`: tokens per slot, rounded up to a multiple of `chunk`, the unit in which decode steps read."""
        self.count, self.capacity, self.chunk = count, round_up(capacity, chunk), chunk
        self.kv_heads = int(config.num_key_value_heads)
        shape = (config.num_hidden_layers, 2, count, self.kv_heads, self.capacity, config.head_dim)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self._valid = [self.capacity] * count  # tokens of each slot that its request wrote, or that are zero
        self._heads = torch.arange(self.kv_heads, device=device) * self.capacity
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)  # last token of each slot, not decoded yet

    @staticmethod
    def bytes_each(config: Any, capacity: int, chunk: int, dtype: torch.dtype) -> int:
        """Bytes per slot."""
        numbers = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        return int(numbers * round_up(capacity, chunk) * dtype.itemsize)

    def begin(self, slot: int, length: int) -> None:
        """Announce a prefill of the first `length` tokens of a slot; its earlier content becomes invalid."""
        self._valid[slot] = length

    def zero_unwritten(self, rows: int, length: int) -> None:
        """Zero unwritten values of the first `rows` slots up to `length`, before a decode step reads them.

        Masked values have weight 0, but 0 * NaN is NaN: values that overflowed in an earlier request of the slot would
        reach every answer. Keys need no zeroing: the mask replaces their scores.
        """
        for slot in range(rows):
            if (valid := self._valid[slot]) < length:
                self._memory[:, 1, slot, :, valid:length] = 0
                self._valid[slot] = length

    def indices(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Memory indices of tokens for `write`: slots and positions, both int64 [m] -> int64 [m * kv_heads]."""
        starts = (slots * (self.kv_heads * self.capacity) + positions)[:, None]
        return (starts + self._heads).flatten()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [m, kv_heads, head_dim] of a layer at `places`, as `indices` gives them."""
        for kind, new in ((0, keys), (1, values)):
            self._memory[layer, kind].view(-1, new.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))

    def read(self, layer: int, start: int, end: int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of slots `start` to `end`: each [r, kv_heads, length, head_dim]."""
        found = self._memory[layer, :, start:end, :, :length]
        return found[0], found[1]

    def move(self, source: int, target: int) -> None:
        """Move a request to another slot."""
        length = self._valid[target] = self._valid[source]
        self._memory[:, :, target, :, :length] = self._memory[:, :, source, :, :length]
        self.tokens[target] = self.tokens[source]


def round_up(length: int, chunk: int) -> int:
    """A length in tokens, rounded up to whole chunks."""
    return -(-length // chunk) * chunk


def chunk_size(image_tokens: int) -> int:
    """Tokens per chunk of a decode step, for the model's image size in tokens: a power of two, 64 to 256."""
    return min(256, max(64, 1 << image_tokens.bit_length() >> 2))
