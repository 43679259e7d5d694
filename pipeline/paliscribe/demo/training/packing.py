"""Prompts and answers as tensors. Packed rows have several prompts per image; each attends to the image and itself.

In PaliGemma's own mask the image attends to the prompt too. Packed rows leave that out, so that one image serves
several prompts for the cost of one. A short last stage trains on plain rows with PaliGemma's own mask.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from paliscribe.demo.training.pools import PATCHES

COARSE = 8  # box answers are trained on every eighth bin, 129 values in all
PICK = {"caption": 1.0, "ocr": 30.0, "answer": 1.0, "detect": 1.4, "segment": 1.0}  # sampling weight of a task
SILENT = {"ocr": 0.3, "segment": 0.35}  # the same where the answer is empty
WEIGHT = {"ocr": 2.0, "segment": 0.5}  # of an answer's tokens in the loss; 1 for other tasks


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its answer, as token ids."""

    prefix: list[int]  # <bos> prompt \n
    answer: list[int]  # answer <eos>
    pick: float
    weight: float


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch for the language model: `r` rows of 64 image tokens and up to `t` text tokens."""

    images: Tensor  # [r] index of the row's image
    tokens: Tensor  # [r, t]
    positions: Tensor  # [r, 64 + t], from 1 as in PaliGemma
    mask: Tensor  # [r, 1, 64 + t, 64 + t], true where a query (third axis) may attend to a key (fourth)
    answer_places: Tensor  # [n, 2] row and text position whose next token belongs to an answer
    targets: Tensor  # [n] that next token
    weights: Tensor  # [n]


def read_items(
    items: Sequence[Sequence[Sequence[str]]],
    tokenizer: PreTrainedTokenizerFast,
    codes: Mapping[str, Sequence[int]] | None = None,
) -> list[list[Example]]:
    """A pool's items as token ids, box bins rounded to `COARSE`: those of `segment` with `codes`, else the others.

    `codes`: of each prototype by `KIND TILT`, 16 each.
    """
    items = [[item for item in scene if (item[0] == "segment") == (codes is not None)] for scene in items]
    texts = sorted({text for scene in items for _, *pair in scene for text in pair})
    rounded = [re.sub(r"<loc(\d{4})>", _coarse, text) for text in texts]
    if codes is not None:
        tokens = {f"<mask {name}>": "".join(f"<seg{code:03d}>" for code in found) for name, found in codes.items()}
        rounded = [re.sub(r"<mask [^>]*>", lambda match: tokens[match[0]], text) for text in rounded]
    ids = dict(zip(texts, tokenizer(rounded, add_special_tokens=False).input_ids, strict=True))
    bos, eos, newline = tokenizer.convert_tokens_to_ids(["<bos>", "<eos>", "\n"])
    return [
        [
            Example(
                [bos, *ids[prompt], newline],
                [*ids[answer], eos],
                SILENT.get(task, PICK[task]) if not answer else PICK[task],
                WEIGHT.get(task, 1.0),
            )
            for task, prompt, answer in scene
        ]
        for scene in items
    ]


def choose(examples: Sequence[Example], count: int, rng: np.random.Generator) -> list[Example]:
    """Sample `count` examples without replacement by their weights."""
    keys = rng.random(len(examples)) ** (1 / np.array([example.pick for example in examples]))
    return [examples[i] for i in np.argsort(-keys)[:count]]


def packed_rows(chosen: Sequence[Sequence[Example]]) -> Rows:
    """One row per image, with all its examples."""
    return _rows(list(range(len(chosen))), chosen, image_sees_prompt=False)


def plain_rows(chosen: Sequence[Sequence[Example]]) -> Rows:
    """One row per example, with PaliGemma's own mask."""
    images = [image for image, examples in enumerate(chosen) for _ in examples]
    return _rows(images, [[example] for examples in chosen for example in examples], image_sees_prompt=True)


def _rows(images: list[int], contents: Sequence[Sequence[Example]], image_sees_prompt: bool) -> Rows:
    length = max(sum(len(e.prefix) + len(e.answer) - 1 for e in examples) for examples in contents)
    shape = (len(contents), length)
    tokens, offsets, owner = (np.zeros(shape, np.int64) for _ in range(3))  # owner 0 is padding
    prefix = np.zeros(shape, bool)
    answer_places: list[tuple[int, int]] = []
    targets: list[int] = []
    weights: list[float] = []
    for row, examples in enumerate(contents):
        start = 0
        for number, example in enumerate(examples, 1):
            text = [*example.prefix, *example.answer[:-1]]
            stop, first_place = start + len(text), start + len(example.prefix) - 1
            tokens[row, start:stop] = text
            offsets[row, start:stop] = np.arange(len(text))
            owner[row, start:stop] = number
            prefix[row, start : first_place + 1] = True
            answer_places += [(row, place) for place in range(first_place, stop)]
            targets += example.answer
            weights += [example.weight] * len(example.answer)
            start = stop
    mask = np.zeros((len(contents), 1, PATCHES + length, PATCHES + length), bool)
    mask[..., :PATCHES] = True
    mask[:, 0, PATCHES:, PATCHES:] = (owner[:, :, None] == owner[:, None]) & (
        prefix[:, None] | (offsets[:, None] <= offsets[:, :, None])
    )
    if image_sees_prompt:
        mask[:, 0, :PATCHES, PATCHES:] = prefix[:, None]
    image_positions = np.broadcast_to(np.arange(1, PATCHES + 1), (len(contents), PATCHES))
    positions = np.concatenate([image_positions, offsets + PATCHES + 1], 1)
    return Rows(
        torch.tensor(images),
        torch.from_numpy(tokens),
        torch.from_numpy(positions),
        torch.from_numpy(mask),
        torch.tensor(answer_places),
        torch.tensor(targets),
        torch.tensor(weights),
    )


def _coarse(match: re.Match[str]) -> str:
    return f"<loc{coarse_bin(int(match[1])):04d}>"


def coarse_bin(value: int) -> int:
    """The nearest of the bins 0, 8, ..., 1016, 1023."""
    return min(1023, (value + COARSE // 2) // COARSE * COARSE)
