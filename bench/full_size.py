"""PaliGemma at full size with random weights: models, requests, and operation counts.

The architecture is that of the released configurations: SigLIP-So400m/14 with Gemma 2B (PaliGemma 1) or Gemma 2 2B
(PaliGemma 2).
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.baseline import Subject
from paliscribe.config import ModelSpec
from paliscribe.model import paligemma as model_module
from paliscribe.model.paligemma import DTYPES, Model
from paliscribe.model.weights import Located
from paliscribe.records import Request

VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT: dict[str, dict[str, Any]] = {
    "gemma": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
    "gemma2": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
}
VOCABULARY, IMAGE_TOKEN = 257216, 257152
SMALL_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
PROMPTS = ("caption en", "answer en what color is the square?", "detect red circle ; blue square")


def config(family: str, pixels: int, *, small: bool = False) -> Any:
    """The configuration at a resolution. `small`: a miniature of the same structure, to test the code on a CPU."""
    from transformers import PaliGemmaConfig

    text: dict[str, Any] = dict(TEXT[family])
    vision: dict[str, Any] = dict(VISION)
    if small:
        text, vision = text | SMALL_TEXT, vision | SMALL_VISION
    tokens = (pixels // vision["patch_size"]) ** 2
    vision |= {"model_type": "siglip_vision_model", "image_size": pixels, "num_image_tokens": tokens}
    text |= {"model_type": family, "vocab_size": VOCABULARY, "max_position_embeddings": 8192}
    projected = text["hidden_size"]
    return PaliGemmaConfig(
        vision_config=vision | {"projection_dim": projected},
        text_config=text | {"num_image_tokens": tokens},
        image_token_id=IMAGE_TOKEN,
        projection_dim=projected,
    )


def subject(family: str, pixels: int, device: str, precision: str, *, small: bool = False) -> Subject:
    """A random model, created on the device, in both forms with shared weights. It has the demo's tokenizer."""
    from transformers import PaliGemmaForConditionalGeneration

    borrowed = model_module.load(ModelSpec(precision="float32"), device="cpu")
    made = config(family, pixels, small=small)
    torch.manual_seed(0)
    with torch.device(device):
        network = PaliGemmaForConditionalGeneration._from_config(made, dtype=DTYPES[precision]).eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    theirs = copy.deepcopy(network, kept)
    located = Located("random", "random", pixels, family)
    spec = ModelSpec.model_validate({"id": "random", "precision": precision})
    return Subject(f"{family}-{pixels}", Model(network, borrowed.tokenizer, located, spec), theirs)


def in_float32(subject: Subject) -> Subject:
    """The same weights in float32, in transformers' form: the reference for the subject's own precision."""
    torch.backends.cudnn.allow_tf32 = False  # on by default: it rounds the encoder's first layer to 10 bits
    network = subject.network
    if network.dtype != torch.float32:
        network = copy.deepcopy(network).float()
    return Subject(f"{subject.name}-float32", subject.model, network)


def requests(pixels: int, count: int, tokens: int | Sequence[int]) -> list[Request]:
    """Requests with random images. `tokens`: answer length, of all or of each."""
    rng = np.random.default_rng(0)
    lengths = [tokens] * count if isinstance(tokens, int) else tokens
    return [
        Request(f"{n}", PROMPTS[n % len(PROMPTS)], rng.integers(0, 256, (pixels, pixels, 3), np.uint8), f"{n}", length)
        for n, length in enumerate(lengths[:count])
    ]


def mixed_lengths(count: int, longest: int) -> list[int]:
    """Answer lengths from 1 to `longest`: each occurs once in every `longest` consecutive ones."""
    rng = random.Random(0)
    lengths: list[int] = []
    while len(lengths) < count:
        lengths += rng.sample(range(1, longest + 1), longest)
    return lengths[:count]


@dataclass(frozen=True, slots=True)
class Work:
    """Cost of an image with one prompt, in GFLOP; a multiply-add is two operations."""

    vision: float
    prefill: float  # of the decoder, including the whole last layer
    decode: float  # of all tokens but the first
    weight_bytes: int  # read by a decode step, in 16-bit precision
    token_bytes: int  # keys and values of one token, in 16-bit precision

    @property
    def total(self) -> float:
        """The sum, in GFLOP."""
        return self.vision + self.prefill + self.decode


def work(made: Any, prompt: int, answer: int) -> Work:
    """Operation counts of one request: matrix products only, without norms and activations.

    `prompt`: tokens without the image's. `answer`: generated tokens; the prefill generates the first one.
    """
    vision, text = made.vision_config, made.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    wide = vision.hidden_size
    block = 4 * wide * wide + 2 * wide * vision.intermediate_size
    outside = wide * (3 * vision.patch_size**2 + text.hidden_size)
    encoder = 2 * patches * (vision.num_hidden_layers * block + outside)
    encoder += 4 * vision.num_hidden_layers * patches * patches * wide
    heads, shared = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * heads + 2 * shared + 3 * text.intermediate_size)
    layers, head = text.num_hidden_layers, text.hidden_size * text.vocab_size
    read = patches + prompt
    prefill = 2 * (read * layers * layer + head) + 4 * layers * read * read * heads
    lengths = [read + number for number in range(1, answer)]
    decode = sum(2 * (layers * layer + head) + 4 * layers * length * heads for length in lengths)
    return Work(
        vision=encoder / 1e9,
        prefill=prefill / 1e9,
        decode=decode / 1e9,
        weight_bytes=2 * (layers * layer + head),
        token_bytes=2 * 2 * layers * shared,
    )
