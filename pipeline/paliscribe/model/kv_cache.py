"""Keys and values of the requests under way: a fixed number of slots, each as long as a request may get.

A slot holds one request's tokens from its start: image, prompt, answer. A prefill writes a group's slots; a decode
step reads the first `rows` slots at once, each at its own length, and appends one token to each.
"""

from typing import Any

import torch
from torch import Tensor


class Slots:
    """The memory: for each layer, keys and values [slots, kv_heads, capacity, head_dim]."""

    def __init__(
        self, config: Any, count: int, capacity: int, chunk: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`capacity`: tokens of a slot, rounded up to whole chunks, in which decode steps look at them."""
        self.count, self.capacity, self.chunk = count, rounded(capacity, chunk), chunk
        self.kv_heads = int(config.num_key_value_heads)
        shape = (config.num_hidden_layers, 2, count, self.kv_heads, self.capacity, config.head_dim)
        self._memory = torch.zeros(shape, dtype=dtype, device=device)
        self._known = [self.capacity] * count  # tokens of each that are its request's own, or zeros
        self._heads = torch.arange(self.kv_heads, device=device) * self.capacity
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)  # the last token of each, not yet decoded

    @staticmethod
    def bytes_each(config: Any, capacity: int, chunk: int, dtype: torch.dtype) -> int:
        """Bytes that one slot takes."""
        numbers = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
        return int(numbers * rounded(capacity, chunk) * dtype.itemsize)

    def begin(self, slot: int, length: int) -> None:
        """A prefill is about to write the first `length` tokens of a slot; what it held before counts no more."""
        self._known[slot] = length

    def reach(self, rows: int, length: int) -> None:
        """Before a decode step of the first `rows` slots that looks so far: have numbers there.

        Values that are not seen get no weight, but no number times zero is no number: one that an earlier request left,
        whose arithmetic overflowed, would spread over every answer. Keys that are not seen may be anything.
        """
        for slot in range(rows):
            if (known := self._known[slot]) < length:
                self._memory[:, 1, slot, :, known:length] = 0
                self._known[slot] = length

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where `write` puts tokens at these positions of these slots, both int64 [m]: int64 [m * kv_heads]."""
        starts = (slots * (self.kv_heads * self.capacity) + positions)[:, None]
        return (starts + self._heads).flatten()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values [m, kv_heads, head_dim] of a layer."""
        for kind, new in ((0, keys), (1, values)):
            self._memory[layer, kind].view(-1, new.shape[-1]).index_copy_(0, places, new.reshape(-1, new.shape[-1]))

    def held(self, layer: int, start: int, end: int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of slots `start` to `end`: each [r, kv_heads, length, head_dim]."""
        found = self._memory[layer, :, start:end, :, :length]
        return found[0], found[1]

    def move(self, source: int, target: int) -> None:
        """Move a request to another slot."""
        length = self._known[target] = self._known[source]
        self._memory[:, :, target, :, :length] = self._memory[:, :, source, :, :length]
        self.tokens[target] = self.tokens[source]


def rounded(length: int, chunk: int) -> int:
    """A length as decode steps see it: in whole chunks."""
    return -(-length // chunk) * chunk


def chunk_of(image_tokens: int) -> int:
    """Tokens that a decode step looks at together, for a model's image of so many: a power of two, 64 to 256."""
    return min(256, max(64, 1 << image_tokens.bit_length() >> 2))
