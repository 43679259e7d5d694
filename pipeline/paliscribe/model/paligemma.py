"""PaliGemma: embed images, prefill prompts, decode tokens.

The weights are transformers'; the computation and the generation loop are ours. What makes the results exact:

* Attention is prefix-LM: image and prompt attend to each other in both directions, the answer is causal. A prefill
  position sees every position of its request; a decoded token sees all before it. The sliding layers of PaliGemma 2
  see only their window in a decode step.
* The rows of a group's requests are packed and go through products of a few sizes (`shapes`) that give equal rows.
  Attention is computed per request, so a request's numbers do not depend on the other requests in a step.
* Positions count from 1, as in transformers.
* Pixels are uint8 until they are on the device, and x / 127.5 - 1 there.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from paliscribe.config import ModelSpec
from paliscribe.errors import UsageError
from paliscribe.model import probe
from paliscribe.model.attention import Spans, decode_attention, full_attention, prefill_attention
from paliscribe.model.kv_cache import Slots, chunk_size
from paliscribe.model.layers import Block, Norm, VisionAttention, reproducible_activation
from paliscribe.model.shapes import Shapes, Sizes
from paliscribe.model.weights import Located, locate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Only the decoder is quantised. Names must be complete: a bare "vision_tower" silently matches nothing.
FULL_PRECISION = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


class Model:
    """A PaliGemma on one device. Not thread-safe: the engine calls it from one thread."""

    def __init__(self, network: Any, tokenizer: Any, located: Located, spec: ModelSpec) -> None:
        self.network, self.located, self.spec = network, located, spec
        self.config = network.config.text_config
        decoder, tower = network.model.language_model, network.model.vision_tower
        for number, layer in enumerate(decoder.layers):
            decoder.layers[number] = Block(layer)
        decoder.norm = Norm(decoder.norm)
        for layer in tower.encoder.layers:
            layer.self_attn = VisionAttention(layer.self_attn)
            layer.mlp.activation_fn = reproducible_activation(layer.mlp.activation_fn, layer.mlp.fc1.out_features)
        self.tokenizer = tokenizer
        # Called from any thread. The wrapper is not thread-safe: it sets truncation and padding in each call.
        self._fast = copy.deepcopy(tokenizer.backend_tokenizer)
        self._fast.no_truncation()
        self._fast.no_padding()
        self.image_size = located.image_size
        self.image_tokens = (located.image_size // network.config.vision_config.patch_size) ** 2
        self.context = int(self.config.max_position_embeddings)  # maximum tokens of image, prompt and answer
        self.window: int | None = getattr(self.config, "sliding_window", None)  # Gemma 2 only
        self.softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        self.chunk = chunk_size(self.image_tokens)
        places = torch.arange(self.context + 1, device=self.device)[None]
        turned = decoder.rotary_emb(torch.zeros(1, dtype=self.dtype, device=self.device), places)
        self.rotation: tuple[Tensor, Tensor] = tuple(
            part[0, :, None] for part in turned
        )  # cosine and sine per position, [n, 1, head_dim]
        self._shapes: dict[int, Shapes] = {}
        self.compiled = False
        self._copying: torch.cuda.Stream | None = None
        end = network.generation_config.eos_token_id
        self.end_tokens = frozenset(end if isinstance(end, list) else [end])

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations, keys and values; also of weights that are not quantised."""
        dtype: torch.dtype = self.network.model.multi_modal_projector.linear.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.network.device
        return device

    def tokenize(self, prompt: str) -> list[int]:
        """`<bos>`, the prompt and a final newline: what the processor puts after the image tokens."""
        ids: list[int] = self._fast.encode(f"{self.tokenizer.bos_token}{prompt}\n", add_special_tokens=False).ids
        return ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of an answer; keeps `<loc>` and `<seg>` tokens."""
        text: str = self._fast.decode(tokens, skip_special_tokens=True)
        return text

    def upload(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Copy images [H, W, 3] to the device, uint8 [n, H, W, 3]; to a GPU on a separate stream."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.stack(images))
        pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=pinned.numpy())
        if self._copying is None:
            self._copying = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copying):
            moved = pinned.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copying)
        moved.record_stream(computing)
        return moved

    def compile(self) -> None:
        """Fuse the operations between products with `torch.compile`, once per size: loading takes minutes more.

        Call it before the first request. Last bits change, as sums are reordered.
        """
        torch._dynamo.config.recompile_limit = 128  # bounded by sizes times kinds of layers
        for block in self.network.model.language_model.layers:
            block.before = torch.compile(block.before, dynamic=False)
            block.after = torch.compile(block.after, dynamic=False)
        for layer in self.network.model.vision_tower.encoder.layers:
            layer.compile(dynamic=False)
        self.compiled = True

    @property
    def shapes(self) -> Shapes:
        """Product sizes for this machine and number of threads; probed on first use. Raises ReplicaError."""
        threads = torch.get_num_threads()
        if threads not in self._shapes:
            self._shapes[threads] = probe.shapes_of(self)
        return self._shapes[threads]

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """SigLIP encoder and projector: uint8 [n, H, W, 3] -> [n, image_tokens, hidden]."""
        features: Tensor = _in_pieces(self.shapes.images, len(pixels), self.encode_images, pixels.to(self.device))
        return features

    def encode_images(self, pixels: Tensor, layers: int | None = None) -> Tensor:
        """As `embed_images` in one batch, optionally through the first `layers` layers only."""
        tower = self.network.model.vision_tower
        patch, convolution = tower.embeddings.patch_size, tower.embeddings.patch_embedding
        side = pixels.shape[1] // patch
        cut = (
            pixels.view(-1, side, patch, side, patch, 3)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(-1, side * side, 3 * patch**2)
        )
        scaled = (cut.to(torch.float32) / 127.5 - 1).to(convolution.weight.dtype)
        hidden = functional.linear(scaled, convolution.weight.flatten(1), convolution.bias)
        hidden = hidden + tower.embeddings.position_embedding.weight
        for layer in tower.encoder.layers[:layers]:
            hidden = layer(hidden, None)
        features: Tensor = self.network.model.multi_modal_projector(tower.post_layernorm(hidden))
        return features

    @torch.inference_mode()
    def prefill(self, features: Tensor, prompts: Sequence[Sequence[int]], slots: Slots, rows: Sequence[int]) -> Tensor:
        """Write image and prompt of g requests to their slots: features [g, image_tokens, hidden] -> logits [g, vocab].

        `rows`: the slot of each request.
        """
        tokens = self.shapes.tokens
        counts = [self.image_tokens + len(prompt) for prompt in prompts]
        starts, total = tokens.layout(counts)
        bounds = [(start, start + count) for start, count in zip(starts, counts, strict=True)]
        spans = Spans(bounds, total, self.device)
        owners: list[int] = []  # slot of each row that is not padding
        taken: list[int] = []  # indices of these rows
        turn = [0] * total  # position of every row
        for row, (start, end) in zip(rows, bounds, strict=True):
            slots.begin(row, end - start)
            owners += [row] * (end - start)
            turn[start:end] = range(1, end - start + 1)
            taken += range(start, end)
        flat = [token for prompt in prompts for token in prompt]
        ids, owner, turns, place = (to_device(values, self.device) for values in (flat, owners, turn, taken))
        places = slots.indices(owner, turns[place] - 1)
        embedded = self.network.get_input_embeddings()(ids).split([len(prompt) for prompt in prompts])
        rest = embedded[0].new_zeros(total, embedded[0].shape[1])
        parts = []
        for seen, prompt, (_, end), after in zip(features, embedded, bounds, spans.ends, strict=True):
            parts += [seen.to(self.dtype), prompt, rest[end:after]]
        hidden = torch.cat(parts)
        cosines, sines = (part[turns] for part in self.rotation)
        *blocks, top = self.network.model.language_model.layers
        for number, block in enumerate(blocks):
            query, key, value = _in_pieces(tokens, total, block.before, hidden, cosines, sines)
            slots.write(number, places, key[place], value[place])
            attended = prefill_attention(query, key, value, spans, block.scaling, block.softcap)
            hidden = _in_pieces(tokens, total, block.after, attended, hidden)
        query, key, value = _in_pieces(tokens, total, top.before, hidden, cosines, sines)
        slots.write(len(blocks), places, key[place], value[place])
        # The last layer's output is needed at each request's last position only; its keys and values everywhere.
        found = [full_attention(query[b - 1 : b], key[a:b], value[a:b], top.scaling, top.softcap) for a, b in bounds]
        attended, hidden = torch.cat(found).flatten(1), torch.stack([hidden[end - 1] for _, end in bounds])
        logits: Tensor = _in_pieces(self.shapes.rows, len(hidden), self.finish, attended, hidden)
        return logits

    @torch.inference_mode()
    def decode_step(self, slots: Slots, positions: Tensor, length: int) -> Tensor:
        """Append `slots.tokens` to the first r slots: logits [r, vocab] of the next token.

        `positions`: int64 [r], tokens held by each slot; `length`: keys to read, greater than every position.
        """
        done, start = [], 0
        for size in self.shapes.rows.pieces(len(positions)):
            done.append(self.decode_rows(slots, start, positions[start : start + size], length))
            start += size
        return torch.cat(done) if len(done) > 1 else done[0]

    def decode_rows(self, slots: Slots, start: int, positions: Tensor, length: int) -> Tensor:
        """As `decode_step` in one batch, for the slots from `start`."""
        end = start + len(positions)
        hidden = self.network.get_input_embeddings()(slots.tokens[start:end])
        cosines, sines = (part[positions + 1] for part in self.rotation)
        places = slots.indices(torch.arange(start, end, device=self.device), positions)
        column = torch.arange(length, device=self.device)
        later = (column > positions[:, None])[:, None, None]
        outside = later
        if self.window is not None and length > self.window:
            outside = later | (column <= (positions - self.window)[:, None])[:, None, None]
        blocks = self.network.model.language_model.layers
        for number, block in enumerate(blocks):
            query, key, value = block.before(hidden, cosines, sines)
            slots.write(number, places, key, value)
            keys, values = slots.read(number, start, end, length)
            unseen = later if block.window is None else outside
            attended = decode_attention(query, keys, values, unseen, slots.chunk, block.scaling, block.softcap)
            if number + 1 < len(blocks):
                hidden = block.after(attended, hidden)
        return self.finish(attended, hidden)

    def finish(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """End of the last layer and the LM head: [r, heads * head_dim] and [r, hidden] -> logits [r, vocab]."""
        decoder = self.network.model.language_model
        logits: Tensor = self.network.lm_head(decoder.norm(decoder.layers[-1].after(attended, hidden)))
        return logits if self.softcap is None else torch.tanh(logits.float() / self.softcap) * self.softcap


def _in_pieces(sizes: Sizes, count: int, function: Callable[..., Any], *rows: Tensor) -> Any:
    """Apply a row-wise function to the first `count` rows, in pieces of the given sizes, zero-padded."""
    pieces = sizes.pieces(count)
    if sum(pieces) > len(rows[0]):
        rows = tuple(torch.cat([part, part.new_zeros(sum(pieces) - len(part), *part.shape[1:])]) for part in rows)
    if len(pieces) == 1:
        found = function(*rows)
        return found[:count] if isinstance(found, Tensor) else tuple(part[:count] for part in found)
    done = [function(*parts) for parts in zip(*(torch.split(part, list(pieces)) for part in rows), strict=True)]
    if isinstance(done[0], Tensor):
        return torch.cat(done)[:count]
    return tuple(torch.cat(parts)[:count] for parts in zip(*done, strict=True))


def to_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Host numbers as a tensor on the device. On a GPU the copy is asynchronous."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def load(spec: ModelSpec, *, device: str | None = None) -> Model:
    """Load a model and its tokenizer onto `device` (default: the GPU if there is one).

    Raises UsageError for a model that is missing, gated, not a PaliGemma, or that this engine cannot run exactly.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spec = spec.resolved(gpu=device != "cpu")
    if device != "cpu":
        choose_kernels()
    located = locate(spec)
    dtype = DTYPES[spec.precision]
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
    except (OSError, ValueError, SafetensorError) as error:  # missing, corrupt, unreachable, or needs code
        raise UsageError(f"model {spec.id} cannot be loaded: {' '.join(str(error).split())}") from None
    model = Model(network.eval(), processor.tokenizer, located, spec)
    if model.image_tokens >= model.context:
        raise UsageError(
            f"model {spec.id}: an image of {located.image_size} px is {model.image_tokens} tokens, more than the "
            f"{model.context} positions of its decoder"
        )
    return model


def choose_kernels() -> None:
    """Configure GPU libraries for this process: one kernel choice for all shapes, and minimal rounding."""
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a new plan for every shape and thread
    torch.backends.cuda.preferred_blas_library("cublaslt")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # split sums would round in between
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _quantization(spec: ModelSpec) -> Any:
    from transformers import BitsAndBytesConfig

    if spec.quantization == "none":
        return None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line per product on a CPU
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
    """Raise UsageError if a checkpoint preprocesses pixels differently from `images` and `embed_images`."""
    images = processor.image_processor
    size = (images.size.get("height"), images.size.get("width"))
    if size != (located.image_size, located.image_size):
        raise UsageError(f"model {name}: its processor resizes to {size}, its encoder expects {located.image_size}")
    if any(abs(value - 0.5) > 1e-9 for value in [*images.image_mean, *images.image_std]) or images.resample != 3:
        raise UsageError(f"model {name}: its processor does not resize bicubically and scale pixels to -1..1")
