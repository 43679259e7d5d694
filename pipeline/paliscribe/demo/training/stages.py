"""The stages of training: data, number of steps, learning rates."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. Learning rates follow a cosine from their start to `floor` times that."""

    name: str
    mode: str  # tower: dense heads only; packed: several prompts per image; plain: one prompt per sequence
    steps: int
    scenes: int  # images per step from the pool of scenes
    pages: int  # images per step from the pool of pages, for the dense heads only
    prompts: int  # prompts per image, but for those of masks
    muon: float
    adamw: float
    floor: float
    dense: float = 1.0  # weight of the dense heads' loss
    warmup: int = 30
    masks: int = 0  # prompts for masks per image, beside the others

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)


STAGES = (
    Stage("tower", "tower", 2600, 32, 32, 0, 3e-3, 2e-3, 0.1),
    Stage("joint", "packed", 3200, 32, 12, 6, 3e-3, 2e-3, 0.05, dense=0.3),
    Stage("finish", "plain", 360, 28, 0, 3, 5e-4, 3.2e-4, 0.0, dense=0.0, warmup=10),
    Stage("masks", "packed", 1500, 24, 0, 3, 1.5e-3, 1.0e-3, 0.05, dense=0.0, masks=2),
    Stage("settle", "plain", 150, 16, 0, 2, 4e-4, 2.6e-4, 0.0, dense=0.0, warmup=10, masks=1),
)
