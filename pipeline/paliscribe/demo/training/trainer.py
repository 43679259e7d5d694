"""Runs training stages. A resumed stage is deterministic: it ends with bit-identical weights.

Every batch is a pure function of stage and step, and torch uses `THREADS` threads regardless of the caller's setting.
A state saved with another torch or processor can be resumed too, but not bit for bit; a message says so.
"""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PaliGemmaForConditionalGeneration, PreTrainedTokenizerFast

from paliscribe.demo.training.heads import DenseHeads
from paliscribe.demo.training.model import build_model
from paliscribe.demo.training.objective import answer_loss
from paliscribe.demo.training.optimizer import Optimizer
from paliscribe.demo.training.packing import Example, choose, packed_rows, plain_rows
from paliscribe.demo.training.pools import Pool
from paliscribe.demo.training.stages import Stage

SEED = 20260
SAVE_EVERY = 50  # steps between resumable states
LOG_EVERY = 50
THREADS = 2


@contextmanager
def own_threads() -> Iterator[None]:
    """Set torch to `THREADS` threads temporarily: the number of threads changes the last bits of sums."""
    given = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(given)


@dataclass(slots=True)
class Learner:
    """Everything that training changes."""

    model: PaliGemmaForConditionalGeneration
    heads: DenseHeads
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    @own_threads()
    def new(cls, tokenizer: PreTrainedTokenizerFast) -> "Learner":
        """Initialize with a fixed seed."""
        model = build_model(tokenizer, SEED)
        return cls(model, DenseHeads(), tokenizer)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """State needed to resume."""
        return {"model": self.model.state_dict(), "heads": self.heads.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Resume from a saved state."""
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])


@dataclass(frozen=True, slots=True)
class Pools:
    """The training data. `examples`, `masks`: prompts and answers of the pool of scenes, by scene."""

    scenes: Pool
    pages: Pool | None  # None if no stage needs them
    examples: list[list[Example]]
    masks: list[list[Example]]  # of `segment`; the other prompts are in `examples`


def load_state(state_file: Path) -> dict[str, Any]:
    """Load a saved state. Prints a message if resuming from it will not be exact."""
    state: dict[str, Any] = torch.load(state_file, weights_only=True)
    made_by, here = state.get("arithmetic"), _arithmetic()
    if made_by != here:
        print(f"{state_file.name}: saved with {made_by}, not {here}; the last bits of weights will differ", flush=True)
    return state


def _arithmetic() -> str:
    """Known factors that change the last bits of results: torch, threads, processor, instruction set."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    level = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__} with {THREADS} threads on {processor} ({level})"


@own_threads()
def run_stage(stage: Stage, learner: Learner, pools: Pools, folder: Path) -> float:
    """Train `learner` in a stage, resuming from a state in `folder` if there is one; returns seconds spent."""
    state_file = folder / f"{stage.name}.pt"
    optimizer = Optimizer(_modules(stage, learner))
    first, seconds = 0, 0.0
    if state_file.exists():
        state = load_state(state_file)
        learner.load_state_dict(state["learner"])
        first, seconds = state["step"], state["seconds"]
        if first < stage.steps:
            optimizer.load_state_dict(state["optimizer"])
    began = time.monotonic() - seconds
    figures: list[tuple[float, ...]] = []
    for step in range(first, stage.steps):
        loss, *rest = _step_loss(stage, learner, pools, np.random.default_rng([SEED, *stage.name.encode(), step]))
        torch.autograd.backward(loss)
        rate = stage.rate(step)
        optimizer.step(stage.muon * rate, stage.adamw * rate)
        figures.append((loss.item(), *rest))
        if (step + 1) % LOG_EVERY == 0:
            means = " ".join(f"{value:.3f}" for value in np.mean(figures[-LOG_EVERY:], axis=0))
            print(f"{stage.name} {step + 1}/{stage.steps} {time.monotonic() - began:.0f}s {means}", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            seconds = time.monotonic() - began
            state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step + 1, "seconds": seconds, "arithmetic": _arithmetic()}
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
    return seconds


def _modules(stage: Stage, learner: Learner) -> list[tuple[nn.Module, float]]:
    """Modules that a stage trains, with factors on their learning rates: half for a pretrained tower."""
    if stage.mode == "tower":
        return [(learner.model.model.vision_tower, 1.0), (learner.heads, 1.0)]
    parts = learner.model.model
    slow: list[tuple[nn.Module, float]] = [(parts.vision_tower, 0.5), (learner.heads, 0.5)]
    return [*slow, (parts.multi_modal_projector, 1.0), (parts.language_model, 1.0)]


def _step_loss(stage: Stage, learner: Learner, pools: Pools, rng: np.random.Generator) -> tuple[Tensor, float, float]:
    """Loss of one batch, and for the log: the answers' loss, and the dense heads' accuracy of characters."""
    scenes = np.sort(rng.choice(len(pools.scenes), stage.scenes, replace=False))
    parts = [(pools.scenes, scenes)]
    if stage.pages:
        assert pools.pages is not None
        parts.append((pools.pages, np.sort(rng.choice(len(pools.pages), stage.pages, replace=False))))
    pixels = _pixels(np.concatenate([pool.images[chosen] for pool, chosen in parts]))
    features = learner.model.model.vision_tower(pixels).last_hidden_state  # [scenes + pages, 64, 128]
    total, answered, read = torch.zeros(()), 0.0, 0.0
    if stage.dense:
        labels = torch.from_numpy(np.concatenate([pool.labels[chosen] for pool, chosen in parts])).long()
        boxes = torch.from_numpy(np.concatenate([pool.boxes[chosen] for pool, chosen in parts])).float()
        dense, read = learner.heads.loss(features, labels, boxes)
        total = total + stage.dense * dense
    if stage.prompts:
        asked = [choose(pools.examples[scene], stage.prompts, rng) for scene in scenes]
        if stage.masks:
            masks = [choose(pools.masks[scene], stage.masks, rng) for scene in scenes]
            asked = [[*others, *of_masks] for others, of_masks in zip(asked, masks, strict=True)]
        rows = packed_rows(asked) if stage.mode == "packed" else plain_rows(asked)
        first_location = learner.tokenizer.convert_tokens_to_ids("<loc0000>")
        loss = answer_loss(learner.model, features, rows, first_location)
        total, answered = total + loss, loss.item()
    return total, answered, read


def _pixels(images: NDArray[np.uint8]) -> Tensor:
    """Convert bytes [n, 112, 112, 3] to the model's input [n, 3, 112, 112] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
