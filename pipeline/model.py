"""PaliGemma in its natural parts: embed images, prefill a prompt, decode a token.

The modules and the weights are those of transformers; the loop around them is ours. What makes it exact:

* image and prompt attend to each other both ways and the answer is causal (prefix-LM), so in a prefill every
  position sees every position that is not padding, and in a decode step the new one sees all before it;
* shorter prompts are padded on the left, and padding is masked out for everybody;
* positions count from 1 at the first token that is not padding, as transformers counts them;
* pixels are uint8 until they are on the device, and x / 127.5 - 1 there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import ModelSpec
from pipeline.errors import UsageError
from pipeline.weights import Located, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Only the decoder is quantised. Names must be given in full: a bare "vision_tower" matches nothing, silently.
FULL_PRECISION = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@dataclass(slots=True)
class DecodeState:
    """A group in mid-answer: keys and values of `g` requests, padded on the left to one length."""

    cache: Any  # transformers.DynamicCache
    visible: Tensor  # bool [g, length]: False where a key is padding
    position: Tensor  # int64 [g]: 1-based position of the next token

    def select(self, rows: Tensor) -> None:
        """Keep these rows (int64 [k]) and forget the others, which have ended."""
        self.cache.batch_select_indices(rows)
        self.visible, self.position = self.visible[rows], self.position[rows]


class Model:
    """One PaliGemma on one device. Not thread-safe: its engine calls it from one thread."""

    def __init__(self, network: Any, tokenizer: Any, located: Located, spec: ModelSpec) -> None:
        self.network, self.tokenizer, self.located, self.spec = network, tokenizer, located, spec
        text = network.config.text_config
        self.image_size = located.image_size
        self.image_tokens = (located.image_size // network.config.vision_config.patch_size) ** 2
        window = getattr(text, "sliding_window", None)  # only the Gemma 2 decoder has one
        self.windowed = window is not None
        self.context = min(int(text.max_position_embeddings), window or 2**31)  # tokens of image, prompt and answer
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        end = network.generation_config.eos_token_id
        self.end_tokens = frozenset(end if isinstance(end, list) else [end])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.network.device
        return device

    def tokenize(self, prompt: str) -> list[int]:
        """`<bos>`, the prompt and the newline that ends it: what the processor puts after the image tokens."""
        ids: list[int] = self.tokenizer(f"{self.tokenizer.bos_token}{prompt}\n", add_special_tokens=False)["input_ids"]
        return ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of an answer; `<loc>` and `<seg>` tokens stay in it."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """The SigLIP encoder and the projector: uint8 [n, H, W, 3] -> [n, image_tokens, hidden]."""
        dtype = self.network.model.multi_modal_projector.linear.weight.dtype
        scaled = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        features: Tensor = self.network.get_image_features(scaled.to(dtype)).pooler_output
        return features

    @torch.inference_mode()
    def prefill(self, features: Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodeState]:
        """Read image and prompt of g requests: [g, image_tokens, hidden] -> float32 logits [g, vocab] and a state."""
        from transformers import DynamicCache

        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)
        length = self.image_tokens + longest
        # Padding goes before the image, so that image, <bos> and prompt stay one run.
        ids = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts], device=self.device)
        embedded = self.network.get_input_embeddings()(ids)
        tokens = torch.cat([features.to(embedded.dtype), embedded], dim=1)
        columns = torch.arange(length, device=self.device)
        source = (columns[None, :] - padding[:, None]) % length  # roll each row right by its padding
        tokens = tokens.gather(1, source[:, :, None].expand_as(tokens))
        visible = columns[None, :] >= padding[:, None]
        position = (columns[None, :] - padding[:, None] + 1).clamp(min=1)
        cache = DynamicCache(config=self.network.config.text_config)
        logits = self._decoder(tokens, visible[:, None, None, :].expand(-1, 1, length, -1), position, cache)
        return logits, DecodeState(cache, visible, position[:, -1] + 1)

    @torch.inference_mode()
    def decode_step(self, state: DecodeState, tokens: Tensor) -> Tensor:
        """Append one token to each request: int64 [g] -> float32 logits [g, vocab]. Advances the state."""
        state.visible = torch.cat([state.visible, state.visible.new_ones(len(tokens), 1)], dim=1)
        embedded = self.network.get_input_embeddings()(tokens[:, None])
        logits = self._decoder(embedded, state.visible[:, None, None, :], state.position[:, None], state.cache)
        state.position = state.position + 1
        return logits

    def _decoder(self, embedded: Tensor, visible: Tensor, position: Tensor, cache: Any) -> Tensor:
        """Gemma over [g, n, hidden] under a mask bool [g, 1, n, length]; float32 logits of the last position."""
        mask: Any = torch.zeros(visible.shape, dtype=embedded.dtype, device=embedded.device)
        mask = mask.masked_fill(~visible, torch.finfo(embedded.dtype).min)
        if self.windowed:  # `context` ends where the window does, so both kinds of layer see the same
            mask = {"full_attention": mask, "sliding_attention": mask}
        hidden = self.network.model.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits: Tensor = self.network.lm_head(hidden[:, -1]).float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def load(spec: ModelSpec, *, device: str | None = None) -> Model:
    """Load a model with its tokenizer onto `device` (default: the GPU if there is one).

    Raises UsageError for a model that is missing, gated, not a PaliGemma, or that this engine cannot run exactly.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = spec.resolved(gpu=device != "cpu")
    located = locate(spec)
    dtype = DTYPES[spec.precision]
    quantization = None
    if spec.quantization == "int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION)
    elif spec.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=FULL_PRECISION,
        )
    where = {"revision": None if located.is_folder else located.revision}
    processor = AutoProcessor.from_pretrained(located.path, **where)
    _check_processor(spec.id, processor, located)
    network = AutoModelForImageTextToText.from_pretrained(
        located.path, dtype=dtype, device_map=device, quantization_config=quantization, use_safetensors=True, **where
    )
    model = Model(network.eval(), processor.tokenizer, located, spec)
    if model.image_tokens >= model.context:
        raise UsageError(
            f"model {spec.id}: an image of {located.image_size} px is {model.image_tokens} tokens, which its attention "
            f"window of {model.context} cannot hold at once; use a checkpoint of a lower resolution"
        )
    return model


def _check_processor(name: str, processor: Any, located: Located) -> None:
    """Refuse a checkpoint whose pixels are prepared in another way than `images` and `embed_images` do it."""
    images = processor.image_processor
    size = (images.size.get("height"), images.size.get("width"))
    if size != (located.image_size, located.image_size):
        raise UsageError(f"model {name}: its processor resizes to {size}, its encoder wants {located.image_size}")
    if any(abs(value - 0.5) > 1e-9 for value in [*images.image_mean, *images.image_std]) or images.resample != 3:
        raise UsageError(f"model {name}: its processor does not resize bicubically and scale pixels to -1..1")
