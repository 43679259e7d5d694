"""PaliGemma in its natural parts: embed images, prefill a prompt, decode a token.

The modules and the weights are those of transformers; the loop around them is ours. What makes it exact:

* image and prompt attend to each other both ways and the answer is causal (prefix-LM), so in a prefill every
  position sees every position that is not padding, and in a decode step the new one sees all before it, except
  that the sliding layers of PaliGemma 2 then look back no further than their window;
* padding is masked out for everybody, and comes last, so that every request begins at the start of its slot;
* positions count from 1, as transformers counts them;
* pixels are uint8 until they are on the device, and x / 127.5 - 1 there.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import ModelSpec
from pipeline.errors import UsageError
from pipeline.slots import ATTENTION, Given, Slots, Writing, key_mask
from pipeline.weights import Located, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Only the decoder is quantised. Names must be given in full: a bare "vision_tower" matches nothing, silently.
FULL_PRECISION = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
# Products of so few rows, or of so odd a length, take other paths through a CPU's libraries, which round otherwise.
# Kept to multiples of this, a request's numbers do not depend on its company, down to the last bit.
ALIGNED = 4


class Norm(torch.nn.Module):
    """Gemma's RMS norm, x / rms(x) * (1 + weight) in float32, in one call instead of seven."""

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.eps = float(original.eps)
        self.scale = torch.nn.Parameter(1.0 + original.weight.detach().float(), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and dtype."""
        normed = torch.nn.functional.rms_norm(hidden.float(), self.scale.shape, self.scale, self.eps)
        return normed.to(hidden.dtype)


class Model:
    """One PaliGemma on one device. Not thread-safe: its engine calls it from one thread."""

    def __init__(self, network: Any, tokenizer: Any, located: Located, spec: ModelSpec) -> None:
        self.network, self.located, self.spec = network, located, spec
        self.config = network.config.text_config
        self.config._attn_implementation = ATTENTION
        decoder = network.model.language_model
        for name, module in list(decoder.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                decoder.set_submodule(name, Norm(module))
        self.tokenizer = tokenizer
        # Called from any thread; its wrapper would set truncation and padding in each call, while others use it.
        self._fast = copy.deepcopy(tokenizer.backend_tokenizer)
        self._fast.no_truncation()
        self._fast.no_padding()
        self.image_size = located.image_size
        self.image_tokens = (located.image_size // network.config.vision_config.patch_size) ** 2
        self.context = int(self.config.max_position_embeddings)  # tokens of image, prompt and answer
        self.window: int | None = getattr(self.config, "sliding_window", None)  # only the Gemma 2 decoder has one
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self._copying: torch.cuda.Stream | None = None
        end = network.generation_config.eos_token_id
        self.end_tokens = frozenset(end if isinstance(end, list) else [end])

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, and of keys and values; that of the weights where they are not quantised."""
        dtype: torch.dtype = self.network.model.multi_modal_projector.linear.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.network.device
        return device

    def tokenize(self, prompt: str) -> list[int]:
        """`<bos>`, the prompt and the newline that ends it: what the processor puts after the image tokens."""
        ids: list[int] = self._fast.encode(f"{self.tokenizer.bos_token}{prompt}\n", add_special_tokens=False).ids
        return ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of an answer; `<loc>` and `<seg>` tokens stay in it."""
        text: str = self._fast.decode(tokens, skip_special_tokens=True)
        return text

    def upload(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Images [H, W, 3] onto the device, uint8 [n, H, W, 3]; to a GPU beside what it is computing."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.stack(images))
        pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        for place, image in zip(pinned, images, strict=True):
            place.copy_(torch.from_numpy(image))
        if self._copying is None:
            self._copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copying):
            moved = pinned.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copying)
        moved.record_stream(computing)
        return moved

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """The SigLIP encoder and the projector: uint8 [n, H, W, 3] -> [n, image_tokens, hidden]."""
        scaled = pixels.to(self.device).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        features: Tensor = self.network.get_image_features(scaled.to(self.dtype)).pooler_output
        return features

    @torch.inference_mode()
    def prefill(self, features: Tensor, prompts: Sequence[Sequence[int]], slots: Slots, rows: Sequence[int]) -> Tensor:
        """Read image and prompt of g requests into their slots: [g, image_tokens, hidden] -> float32 logits [g, vocab].

        `rows`: the slot of each.
        """
        longest = max(map(len, prompts))
        longest += -(self.image_tokens + longest) % ALIGNED
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        ids, lengths, target = (
            to_device(values, self.device)
            for values in (padded, [self.image_tokens + len(prompt) for prompt in prompts], rows)
        )
        embedded = self.network.get_input_embeddings()(ids)
        hidden = torch.cat([features.to(embedded.dtype), embedded], dim=1)
        count = hidden.shape[1]
        mask = key_mask(lengths, count, hidden.dtype)
        rotation = self._rotation(hidden, torch.arange(1, count + 1, device=self.device)[None])
        cache = slots.writing(target)
        *layers, last = self.network.model.language_model.layers
        for layer in layers:
            hidden = layer(hidden, position_embeddings=rotation, attention_mask=mask, cache=cache)
        return self._logits(self._last_layer(last, hidden, rotation, lengths, mask, cache)[:, -1])

    @torch.inference_mode()
    def decode_step(self, slots: Slots, positions: Tensor, length: int) -> Tensor:
        """Append `slots.tokens` to the first r slots: float32 logits [r, vocab] of what follows.

        `positions`: int64 [r], the tokens that each slot holds; `length`: how many are looked at, above all of them.
        """
        hidden = self.network.get_input_embeddings()(slots.tokens[: len(positions), None])
        lengths = positions + 1
        full = key_mask(lengths, length, hidden.dtype)
        sliding = full
        if self.window is not None and length > self.window:
            sliding = key_mask(lengths, length, hidden.dtype, lengths - self.window)
        rotation = self._rotation(hidden, lengths[:, None])
        cache = slots.appending(positions, length)
        for layer in self.network.model.language_model.layers:
            mask = sliding if getattr(layer.self_attn, "sliding_window", None) is not None else full
            hidden = layer(hidden, position_embeddings=rotation, attention_mask=mask, cache=cache)
        return self._logits(hidden[:, 0])

    def _last_layer(
        self, layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], lengths: Tensor, mask: Tensor, cache: Writing
    ) -> Tensor:
        """The last layer of a prefill, needed at the last position only: [g, n, hidden] -> [g, ALIGNED, hidden].

        Keys and values are made of every position; queries, and all that follows, of the last few of each request.
        """
        from transformers.models.gemma.modeling_gemma import apply_rotary_pos_emb

        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        shape = (*hidden.shape[:2], -1, attention.head_dim)
        key, value = (part(normed).view(shape).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        _, key = apply_rotary_pos_emb(key, key, *rotation)
        cache.update(key, value, attention.layer_idx)
        place = lengths[:, None] + torch.arange(-ALIGNED, 0, device=lengths.device)
        rows = torch.arange(len(lengths), device=lengths.device)[:, None]
        turned = tuple(part[0, place] for part in rotation)
        given = Given(key, value)
        tail: Tensor = layer(hidden[rows, place], position_embeddings=turned, attention_mask=mask, cache=given)
        return tail

    def _rotation(self, hidden: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions, int64 [g, n] from 1: each [g, n, head_dim]."""
        rotation: tuple[Tensor, Tensor] = self.network.model.language_model.rotary_emb(hidden, position)
        return rotation

    def _logits(self, hidden: Tensor) -> Tensor:
        """[g, hidden] -> float32 [g, vocab]."""
        count = len(hidden)
        if count % ALIGNED:
            hidden = torch.cat([hidden, hidden.new_zeros(-count % ALIGNED, hidden.shape[1])])
        normed = self.network.model.language_model.norm(hidden)
        logits: Tensor = self.network.lm_head(normed)[:count].float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host as a tensor. Nobody waits for a GPU to be done with what it was given before."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def load(spec: ModelSpec, *, device: str | None = None) -> Model:
    """Load a model with its tokenizer onto `device` (default: the GPU if there is one).

    Raises UsageError for a model that is missing, gated, not a PaliGemma, or that this engine cannot run exactly.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = spec.resolved(gpu=device != "cpu")
    located = locate(spec)
    dtype = DTYPES[spec.precision]
    if spec.precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # on by default: the encoder's first layer would round to 10 bits
    path, revision = located.local()
    try:
        processor = AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
        _check_processor(spec.id, processor, located)
        network = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            device_map=device,
            quantization_config=_quantization(spec),
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, SafetensorError) as error:  # a file is missing, broken, out of reach, or wants code
        raise UsageError(f"model {spec.id} cannot be loaded: {' '.join(str(error).split())}") from None
    model = Model(network.eval(), processor.tokenizer, located, spec)
    if model.image_tokens >= model.context:
        raise UsageError(
            f"model {spec.id}: an image of {located.image_size} px is {model.image_tokens} tokens, more than the "
            f"{model.context} positions that its decoder was made for"
        )
    return model


def _quantization(spec: ModelSpec) -> Any:
    from transformers import BitsAndBytesConfig

    if spec.quantization == "none":
        return None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it has a line for every product
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=DTYPES[spec.precision],
        llm_int8_skip_modules=FULL_PRECISION,
    )


def _check_processor(name: str, processor: Any, located: Located) -> None:
    """Refuse a checkpoint whose pixels are prepared in another way than `images` and `embed_images` do it."""
    images = processor.image_processor
    size = (images.size.get("height"), images.size.get("width"))
    if size != (located.image_size, located.image_size):
        raise UsageError(f"model {name}: its processor resizes to {size}, its encoder wants {located.image_size}")
    if any(abs(value - 0.5) > 1e-9 for value in [*images.image_mean, *images.image_std]) or images.resample != 3:
        raise UsageError(f"model {name}: its processor does not resize bicubically and scale pixels to -1..1")
