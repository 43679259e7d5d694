"""LRU cache of image embeddings: an image under several tasks is encoded once."""

from collections import OrderedDict

from torch import Tensor


class Embeddings:
    """Evicts the least recently used embeddings when their size exceeds `budget` bytes."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Tensor | None:
        """An image's cached embedding [image_tokens, hidden], or None."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: str, embedding: Tensor) -> None:
        """Cache an embedding. It must own its memory: a view would keep its whole group alive."""
        if key not in self._kept:
            self.bytes += embedding.nbytes
        self._kept[key] = embedding
        while self.bytes > self.budget:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
