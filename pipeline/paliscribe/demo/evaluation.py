"""Evaluates a checkpoint on held-out scenes, with transformers' processor and `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
)

from paliscribe.demo import MASK_DECODER
from paliscribe.demo.answers import Item, scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.masks import masks
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, TEXT_KINDS, Scene
from paliscribe.demo.score import Result, read_boxes
from paliscribe.grammar.masks import MaskDecoder, decode_rle
from paliscribe.grammar.tasks import parse_task

EVALUATION_SEEDS = TEST_SEEDS + 500_000_000
"""First seed of the scenes for the published figures."""
MAX_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Question:
    """An item and its image."""

    image: Image.Image
    item: Item
    masks: Sequence[NDArray[np.bool_]]  # that `segment` should find, bool [height, width]


class Annotator:
    """A checkpoint in float32 with greedy decoding. `masks`: its decoder."""

    def __init__(
        self, model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, masks: MaskDecoder
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.masks = masks

    @classmethod
    def load(cls, folder: Path) -> Annotator:
        """Load a checkpoint from a folder."""
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        masks = MaskDecoder.from_npz((folder / MASK_DECODER.name).read_bytes())
        return cls(model, AutoProcessor.from_pretrained(folder), masks)

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """One answer for each image and its prompt, in one left-padded batch."""
        text = [f"<image>{prompt}" for prompt in prompts]
        inputs = self.processor(images=list(images), text=text, padding=True, return_tensors="pt")
        inputs.pop("labels", None)
        tokens = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = tokens[:, inputs.input_ids.shape[1] :]
        return list(self.processor.batch_decode(answers, skip_special_tokens=True))


def questions(scenes: int, texts: int, first_seed: int = EVALUATION_SEEDS) -> Iterator[Question]:
    """All prompts of the first `scenes` scenes, with another selection for `ocr`.

    `ocr` is used for `texts` scenes with text, evenly over the kinds of text, and for those of the first scenes that
    have no text.
    """
    wanted = dict.fromkeys(TEXT_KINDS, 0)
    for i, kind in enumerate(TEXT_KINDS):
        wanted[kind] = texts // len(TEXT_KINDS) + (i < texts % len(TEXT_KINDS))
    for number in count():
        scene = sample_scene(first_seed + number)
        tasks = {"caption", "answer", "detect", "segment"} if number < scenes else set()
        if scene.texts and wanted[scene.texts[0].kind]:
            wanted[scene.texts[0].kind] -= 1
            tasks.add("ocr")
        elif not scene.texts and number < scenes:
            tasks.add("ocr")
        items = [item for item in scene_items(scene) if item.task in tasks]
        if items:
            image = draw(scene)
            yield from (Question(image, item, _expected(scene, item)) for item in items)
        if number + 1 >= scenes and not any(wanted.values()):
            return


def ask(annotator: Annotator, given: Sequence[Question], batch: int = 64) -> list[Result]:
    """Answer questions in batches of `batch`, in order. Answers of similar length are batched together, for speed."""
    order = sorted(range(len(given)), key=lambda i: (given[i].item.task, len(given[i].item.answer)))
    results: dict[int, Result] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        items = [given[i].item for i in chosen]
        answers = annotator.answer([given[i].image for i in chosen], [item.prompt for item in items])
        for i, item, text in zip(chosen, items, answers, strict=True):
            found = read_boxes(text, *given[i].image.size) if item.task in ("detect", "segment") else []
            overlaps = _overlaps(annotator.masks, given[i], text) if item.task == "segment" else ()
            results[i] = Result(item.task, item.kind, item.answer, text, item.boxes, found, overlaps)
    return [results[i] for i in range(len(given))]


def _expected(scene: Scene, item: Item) -> list[NDArray[np.bool_]]:
    return masks(scene, item.prompt.removeprefix("segment ")) if item.task == "segment" else []


def _overlaps(decoder: MaskDecoder, question: Question, text: str) -> list[float]:
    """IoU of each expected mask with the mask of that label that was found for it, best pair first; 0 if missed."""
    label = question.item.prompt.removeprefix("segment ")
    width, height = question.image.size
    parsed = parse_task(question.item.prompt).parse(text, width, height).masks
    filled = [decoder.fill(mask) for mask in parsed if mask.label == label]
    found = [decode_rle(mask.rle, height, width) for mask in filled if mask.rle is not None]
    ious = np.array([[(one & other).sum() / (one | other).sum() for other in found] for one in question.masks])
    overlaps = [0.0] * len(question.masks)
    while ious.size and ious.max() > 0:
        expected, chosen = np.unravel_index(ious.argmax(), ious.shape)
        overlaps[expected] = float(ious[expected, chosen])
        ious[expected], ious[:, chosen] = 0, 0
    return overlaps
