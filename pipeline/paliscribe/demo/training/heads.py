"""Dense prediction heads on the patches of the vision tower. For pretraining it; not part of the checkpoint."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from paliscribe.demo.scenes import COLORS, SHAPES
from paliscribe.demo.training.model import WIDTH
from paliscribe.demo.training.pools import CHARACTERS

SIZES = (len(SHAPES) + 1, len(COLORS) + 1, 2, len(CHARACTERS) + 1, len(CHARACTERS) + 1)  # columns of Pool.labels
WEIGHTS = (1.0, 1.0, 1.0, 4.0, 1.0)


class DenseHeads(nn.Module):
    """One linear layer per patch to all labels and a box."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, sum(SIZES) + 4)

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features [n, 64, 128] to logits [n, 64, classes], one tensor per label, and boxes [n, 64, 4] in 0..1."""
        *logits, boxes = self.map(features).split([*SIZES, 4], dim=-1)
        return logits, boxes.sigmoid()

    def loss(self, features: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, float]:
        """Loss over labels [n, 64, 5] and boxes [n, 64, 4], and the accuracy of first characters."""
        logits, found = self(features)
        total = torch.zeros(())
        for column, (scores, weight) in enumerate(zip(logits, WEIGHTS, strict=True)):
            total = total + weight * functional.cross_entropy(scores.flatten(0, 1), labels[..., column].flatten())
        on_shape = labels[..., 0] > 0
        if on_shape.any():
            total = total + 4 * (found[on_shape] - boxes[on_shape]).abs().mean()
        written = labels[..., 3] > 0
        right = (logits[3].argmax(-1) == labels[..., 3])[written].float().mean().item()
        return total, right
