"""Models and requests that the tests of the engine share, and transformers' own answers to them."""

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from paliscribe.config import ModelSpec, PoolConfig
from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS
from paliscribe.engine import Engine, engine_sizes
from paliscribe.model import paligemma as model_module
from paliscribe.model.paligemma import Model
from paliscribe.records import Request

PROMPTS = (
    "caption en",
    "answer en how many circles are there?",
    "ocr",
    "detect red circle ; blue square ; green star",
    "answer en what color is the square?",
)


@cache
def demo_model() -> Model:
    return model_module.load(ModelSpec(id="demo"), device="cpu")


@cache
def random_model(
    seed: int, family: str = "gemma", dtype: torch.dtype = torch.float32, layers: int = 4, **text_settings: Any
) -> tuple[Model, Any]:
    """A model of random weights with the demo's tokenizer, and transformers' copy of it. Both towers have `layers`.

    Its answers are long, odd and sensitive.
    """
    demo = demo_model()
    config = PaliGemmaConfig.from_pretrained(demo.located.path)
    text = config.text_config.to_dict()
    if family == "gemma2":
        text = {k: v for k, v in text.items() if k not in {"model_type", "architectures"}}
        text |= {"model_type": "gemma2", "query_pre_attn_scalar": 32, "sliding_window": 4096}
        text |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "layer_types": None}
        text |= {"num_key_value_heads": 2}
    config = PaliGemmaConfig(
        vision_config=config.vision_config.to_dict() | {"num_hidden_layers": layers},
        text_config=text | {"num_hidden_layers": layers} | text_settings,
        image_token_id=config.image_token_id,
        projection_dim=config.projection_dim,
    )
    torch.manual_seed(seed)
    network = PaliGemmaForConditionalGeneration._from_config(config, dtype=dtype).eval()
    for parameter in network.parameters():
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    network.lm_head.weight = torch.nn.Parameter(torch.randn_like(network.lm_head.weight))  # tied, it repeats itself
    network.generation_config.eos_token_id = list(range(5, 1411, 11))  # a random model ends now and then too
    original = copy.deepcopy(network)
    return Model(network, demo.tokenizer, demo.located, demo.spec), original


def engine(model: Model, *, late: bool | None = None, **pool: Any) -> Engine:
    """An engine with these settings of its pool."""
    return Engine(model, engine_sizes(model, PoolConfig(**pool)), late=late)


def images(count: int, size: int = 112) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def requests(count: int, max_tokens: int = 24, pictures: int = 4) -> list[Request]:
    """Requests of mixed prompts, pictures and limits."""
    pixels = images(pictures)
    return [
        Request(f"r{i}", PROMPTS[i % len(PROMPTS)], pixels[i % pictures], f"image-{i % pictures}", max_tokens - i % 7)
        for i in range(count)
    ]


def scene_requests(scenes: int, first: int = TEST_SEEDS, max_tokens: int = 64) -> list[Request]:
    """A request a held-out scene: caption, text, a question and a detection by turns."""
    made = []
    for number in range(scenes):
        scene = sample_scene(first + number)
        items = [item for item in scene_items(scene) if item.task == ("caption", "ocr", "answer", "detect")[number % 4]]
        pixels = np.asarray(draw(scene).convert("RGB").resize((112, 112), 3))
        made.append(Request(f"s{number}", items[number % len(items)].prompt, pixels, f"scene-{number}", max_tokens))
    return made


@cache
def _processor() -> Any:
    return AutoProcessor.from_pretrained(demo_model().located.path)


def generate(network: Any, request: Request) -> tuple[int, ...]:
    """What transformers answers to one request on its own, through its own processor."""
    inputs = _processor()(images=request.pixels, text=f"<image>{request.prompt}", return_tensors="pt")
    output = network.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    end = network.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    return tuple(answer[:-1] if answer[-1] in ends else answer)
