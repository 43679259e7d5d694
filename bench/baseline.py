"""The baseline, `model.generate` in static batches, and the models and loads of the comparison.

The comparison favours the baseline: inputs are prepared before the clock starts, its tokens are not decoded to text,
and the length of each answer is known, so that the sorted variant can group similar lengths.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from paliscribe.config import ModelSpec
from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS
from paliscribe.model import paligemma as model_module
from paliscribe.model.paligemma import Model
from paliscribe.records import Request

LOADS = ("short", "mixed", "long-tail", "natural")
KINDS = {  # kinds of tasks of each load, in turns; mixed tasks share an image
    "short": ("answer",),
    "mixed": ("answer", "caption", "detect"),
    "long-tail": ("answer", "answer", "answer", "answer", "answer", "long"),
    "natural": ("answer", "caption", "detect"),
}
LENGTHS = {"answer": (1, 3), "caption": (8, 16), "detect": (12, 40), "long": (60, 100)}  # tokens, minimum and maximum
FIRST_SCENE = TEST_SEEDS + 700_000_000


@dataclass(slots=True)
class Subject:
    """A model in two forms: ours, and as transformers loads it."""

    name: str
    model: Model
    network: Any

    def let_end(self, ends: bool) -> None:
        """Whether answers end at the end token; otherwise each has `max_tokens` tokens."""
        token = self.model.tokenizer.eos_token_id
        self.model.end_tokens = frozenset([token] if ends else [])
        self.network.generation_config.eos_token_id = token if ends else None


def demo() -> Subject:
    """The demo checkpoint, in float32."""
    from transformers import AutoModelForImageTextToText

    loaded = model_module.load(ModelSpec(precision="float32"), device="cpu")
    network = AutoModelForImageTextToText.from_pretrained(loaded.located.path, dtype=torch.float32).eval()
    return Subject("demo", loaded, network)


def mid() -> Subject:
    """A PaliGemma with 41 million random parameters, and the demo's tokenizer and image size."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    small = model_module.load(ModelSpec(precision="float32"), device="cpu")
    config = PaliGemmaConfig.from_pretrained(small.located.path)
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    vision = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
    config = PaliGemmaConfig(
        text_config=config.text_config.to_dict() | text | {"head_dim": 64},
        vision_config=config.vision_config.to_dict() | vision | {"projection_dim": 512},
        image_token_id=config.image_token_id,
        projection_dim=512,
    )
    torch.manual_seed(0)
    network = PaliGemmaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    original = copy.deepcopy(network)
    return Subject("mid", Model(network, small.tokenizer, small.located, small.spec), original)


def requests(load: str, count: int) -> list[Request]:
    """Requests of a load, on held-out scenes. Answer lengths are random; `natural` uses the model's own."""
    kinds, rng = KINDS[load], np.random.default_rng(0)
    made: list[Request] = []
    number = 0
    while len(made) < count:
        scene = sample_scene(FIRST_SCENE + number)
        pixels = np.asarray(draw(scene).convert("RGB").resize((112, 112), 3))
        for kind in [kinds[number % len(kinds)]] if load == "long-tail" else kinds:
            items = [item for item in scene_items(scene) if item.task == {"long": "detect"}.get(kind, kind)]
            limit = 128 if load == "natural" else int(rng.integers(*LENGTHS[kind], endpoint=True))
            prompt = items[number % len(items)].prompt
            made.append(Request(f"{number}/{kind}", prompt, pixels, f"scene-{number}", limit))
        number += 1
    return made[:count]


@dataclass(slots=True)
class Batch:
    """Inputs of one `generate` call. `limit`: the maximum answer length, in tokens."""

    inputs: dict[str, Tensor]
    limit: int


def batches(subject: Subject, wanted: Sequence[Request], size: int) -> list[Batch]:
    """Prepare static batches in the given order, with left padding as the processor does."""
    return [_batch(subject.model, wanted[start : start + size]) for start in range(0, len(wanted), size)]


def generate(subject: Subject, prepared: Sequence[Batch], **options: Any) -> list[Tensor]:
    """Answer static batches one after another: int64 [n, new tokens] of each, padded after the end token.

    `options`: those of `model.generate`.
    """
    answers, network = [], subject.network
    for batch in prepared:
        inputs = {name: values.to(network.device, non_blocking=True) for name, values in batch.inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(network.dtype)
        output = network.generate(**inputs, max_new_tokens=batch.limit, do_sample=False, **options)
        answers.append(cast("Tensor", output)[:, batch.inputs["input_ids"].shape[1] :].cpu())
    return answers


def waste(prompts: Sequence[int], answers: Sequence[int], size: int) -> tuple[float, float]:
    """Waste of static batches of `size`: the occupancy of decode rows, and the share of padding in prefills.

    `prompts`, `answers`: lengths in tokens.
    """
    decoded = rows = padded = prefilled = 0
    for start in range(0, len(prompts), size):
        prompt, answer = prompts[start : start + size], answers[start : start + size]
        steps = max(answer) - 1  # the prefill generates the first token
        rows += steps * len(answer)
        decoded += sum(n - 1 for n in answer)
        prefilled += max(prompt) * len(prompt)
        padded += sum(max(prompt) - n for n in prompt)
    return (decoded / rows if rows else 1.0), padded / prefilled


def _batch(model: Model, wanted: Sequence[Request]) -> Batch:
    prompts = [model.tokenize(request.prompt) for request in wanted]
    longest = max(map(len, prompts))
    image = [model.network.config.image_token_id] * model.image_tokens
    ids = [[0] * (longest - len(prompt)) + image + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * (model.image_tokens + len(prompt)) for prompt in prompts]
    pixels = torch.from_numpy(np.stack([request.pixels for request in wanted])).permute(0, 3, 1, 2)
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "token_type_ids": torch.zeros(len(wanted), model.image_tokens + longest, dtype=torch.int64),
        "pixel_values": pixels.to(torch.float32) / 127.5 - 1,
    }
    return Batch(inputs, max(request.max_tokens for request in wanted))
