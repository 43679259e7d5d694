"""Embeddings of images that outlive their group: several tasks on one image pass the encoder once."""

from collections import OrderedDict

from torch import Tensor


class Embeddings:
    """The least recently used go first when their bytes pass the budget."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Tensor | None:
        """An image's embedding [image_tokens, hidden], if it is still kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def keep(self, key: str, embedding: Tensor) -> None:
        """Keep an embedding; it must not share its memory with others, which would live on with it."""
        if key not in self._kept:
            self.bytes += embedding.nbytes
        self._kept[key] = embedding
        while self.bytes > self.budget:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes
