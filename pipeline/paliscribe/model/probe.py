"""Probe for product sizes that give equal rows; runs once per model, machine and number of threads, then cached.

The result depends on libraries, processor, threads, model shapes and precision, not on the weights. It is cached beside
downloaded models under a hash of these.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paliscribe.errors import ReplicaError
from paliscribe.model.attention import decode_attention
from paliscribe.model.download import cache_folder
from paliscribe.model.shapes import Run, Shapes, Sizes, choose

if TYPE_CHECKING:
    from paliscribe.model.paligemma import Model

log = logging.getLogger(__name__)
VERSION = 7  # of the cached format and of the probe
SMALL = 2**23  # weights of a layer plus the head, below which a CPU can probe many sizes quickly
CPU_TOKENS, CPU_ROWS = (*range(64, 256, 16), *range(256, 1025, 32)), (1, *range(4, 65, 4))
LARGE_TOKENS, LARGE_ROWS = (64, 256), (1, 8, 16, 32, 64)  # for larger models on a CPU
GPU_TOKENS, GPU_ROWS = (512, 1024, 2048, 4096), (1, 8, 16, 32, 64, 128, 256)
IMAGES, LARGE_IMAGES = (1, 2, 4, 8, 16), (1,)
# Fixed cost of a call, in rows: a decode step reads all weights whatever its size; a prefill piece is mostly compute.
CALLS = TOKENS_CALL, ROWS_CALL, IMAGES_CALL = 32, 64, 1
MAX_TEXT_TOKENS = 1024  # text tokens up to which the read length is probed for an effect on results
ENVIRONMENT_PREFIXES = ("MKL", "ONEDNN", "DNNL", "OMP", "KMP", "ATEN", "TORCH", "PYTORCH", "CUBLAS", "CUDA", "NVIDIA")


def shapes_of(model: "Model") -> Shapes:
    """The product sizes of a model here, cached or probed now. Raises ReplicaError if the model cannot run."""
    candidates = _candidates(model)
    if model.spec.quantization == "int8":  # outliers are chosen over all rows of a product: never equal rows
        tokens, rows, images = (Sizes(sizes, call) for sizes, call in zip(candidates, CALLS, strict=True))
        return Shapes(tokens, rows, images)
    kept = cache_folder() / "shapes" / f"{_key(model)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return _read(json.loads(kept.read_text()))
    begun = time.monotonic()
    try:
        found = _probe(model, *candidates)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ReplicaError(f"the model cannot answer: {type(error).__name__}: {said}") from None
    log.info("probed product sizes in %.1f s: %s", time.monotonic() - begun, found.describe())
    with contextlib.suppress(OSError):  # not cached: the next load probes again
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(found)))
        partial.replace(kept)
    return found


def _candidates(model: "Model") -> tuple[tuple[int, ...], ...]:
    """Sizes to probe: of tokens, rows and images."""
    if model.device.type == "cuda":
        return GPU_TOKENS, GPU_ROWS, IMAGES
    if _large(model) or model.dtype != torch.float32:  # many processors have no fast 16-bit arithmetic
        return LARGE_TOKENS, LARGE_ROWS, LARGE_IMAGES
    return CPU_TOKENS, CPU_ROWS, IMAGES


def _large(model: "Model") -> bool:
    block = model.network.model.language_model.layers[0]
    weights = sum(parameter.numel() for parameter in (*block.parameters(), model.network.lm_head.weight))
    return bool(weights >= SMALL)


@torch.inference_mode()
def _probe(model: "Model", tokens: tuple[int, ...], rows: tuple[int, ...], images: tuple[int, ...]) -> Shapes:
    make = _Workloads(model)
    # In float32 any row shows a different summation order. In 16-bit types a last bit differs once in thousands of
    # sums, so small models need many rows to show it.
    many, few = (64, 64) if model.dtype == torch.float32 else (256, 128)
    if _large(model) and model.device.type != "cuda":
        many, few = 64, 8
    found_rows = choose([*make.halves(few), make.finish(few), make.attend(few)], rows, call=ROWS_CALL, most=max(rows))
    found_images = Sizes(images, IMAGES_CALL)
    if len(images) > 1:
        found_images = choose([make.images(8)], images, call=IMAGES_CALL, most=max(images))
    return Shapes(
        choose(make.halves(many), tokens, call=TOKENS_CALL, most=max(tokens)),
        found_rows,
        found_images,
        make.any_length(found_rows.sizes),
    )


class _Workloads:
    """Random rows for each part of a model, and the part. One layer stands for all: their shapes are equal."""

    def __init__(self, model: "Model") -> None:
        self.model, self.block = model, model.network.model.language_model.layers[0]
        self.hidden = int(model.config.hidden_size)
        self.heads = self.block.kv_heads, int(model.config.num_attention_heads)
        self._generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.model.device, self.model.dtype)

    def halves(self, count: int) -> list[tuple[Run, Tensor]]:
        """The two halves of a layer, and each of their products alone, where no residual sum hides a last bit."""
        block, wide = self.block, self.heads[1] * self.block.head_dim

        def before(rows: Tensor) -> list[Tensor]:
            return list(block.before(rows, *(part[: len(rows)] for part in turned)))

        def after(rows: Tensor) -> list[Tensor]:
            return [block.after(rows[:, :wide], rows[:, wide:])]

        turned = [part[7].expand(4096, -1, -1) for part in self.model.rotation]
        narrow, joined = self.random(count, self.hidden), self.random(count, wide + self.hidden)
        between = self.random(count, int(self.model.config.intermediate_size))
        gated = functools.partial(block.gate_up.gated, activation=torch.nn.Identity())
        alone = [(block.qkv, narrow), (block.out, joined[:, :wide]), (gated, narrow), (block.down, between)]
        return [(before, narrow), (after, joined), *((_single(product), pool) for product, pool in alone)]

    def finish(self, count: int) -> tuple[Run, Tensor]:
        """The end of the last layer, and the LM head."""
        wide = self.heads[1] * self.block.head_dim
        return _single(lambda rows: self.model.finish(rows[:, :wide], rows[:, wide:])), self.random(
            count, wide + self.hidden
        )

    def attend(self, count: int) -> tuple[Run, Tensor]:
        """A decode step's attention over two chunks."""
        return self._decode_attention(count, 2), torch.arange(count, device=self.model.device)

    def any_length(self, sizes: tuple[int, ...]) -> bool:
        """Whether a decode step's results are independent of how far past a row's end it reads."""
        rows, chunk = next((size for size in sizes if size >= 8), sizes[-1]), self.model.chunk
        longest = min(self.model.context, self.model.image_tokens + MAX_TEXT_TOKENS) // chunk
        places = torch.arange(rows, device=self.model.device)
        found = [self._decode_attention(rows, chunks)(places)[0] for chunks in range(2, longest + 1)]
        return all(torch.equal(found[0], other) for other in found)

    def images(self, count: int) -> tuple[Run, Tensor]:
        """The encoder's first layers, and the projector."""
        size = self.model.image_size
        pixels = torch.randint(0, 256, (count, size, size, 3), generator=self._generator, dtype=torch.uint8)
        return _single(lambda some: self.model.encode_images(some, 2)), pixels.to(self.model.device)

    def _decode_attention(self, count: int, chunks: int) -> Run:
        """Attention of rows that end within two chunks, reading `chunks` chunks; the rest is random and masked."""
        block, chunk = self.block, self.model.chunk
        self._generator.manual_seed(1)
        query = self.random(count, self.heads[1], block.head_dim)
        near = self.random(2, count, self.heads[0], 2 * chunk, block.head_dim)
        ends = torch.randint(1, 2 * chunk, (count, 1, 1, 1), generator=self._generator).to(self.model.device)
        far = self.random(
            2, count, self.heads[0], (chunks - 1) * chunk, block.head_dim
        )  # slots are longer than the read length
        held = torch.cat([near, far], dim=3)
        hidden = torch.arange(chunks * chunk, device=self.model.device) >= ends

        def run(rows: Tensor) -> list[Tensor]:
            keys, values = held[:, rows][..., : chunks * chunk, :]
            return [decode_attention(query[rows], keys, values, hidden[rows], chunk, block.scaling, block.softcap)]

        return run


def _single(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda rows: [function(rows)]


def _key(model: "Model") -> str:
    """Hash of everything that the result depends on."""
    cuda = model.device.type == "cuda"
    parts: dict[str, Any] = {
        "version": [VERSION, _candidates(model), CALLS],
        "torch": torch.__version__ + torch.__config__.show(),
        "device": torch.cuda.get_device_name(model.device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(ENVIRONMENT_PREFIXES)},
        "model": [model.network.config.text_config.to_dict(), model.network.config.vision_config.to_dict()],
        "arithmetic": [str(model.dtype), model.spec.quantization, model.spec.double_quantization, model.compiled],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _processor() -> str:
    """Processor model and feature flags."""
    with contextlib.suppress(OSError):
        told = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in told if line.startswith(("model name", "flags", "Features")))
    return platform.processor()


def _read(kept: dict[str, Any]) -> Shapes:
    tokens, rows, images = (
        Sizes(tuple(kept[name]["sizes"]), kept[name]["call"], kept[name]["apart"])
        for name in ("tokens", "rows", "images")
    )
    return Shapes(tokens, rows, images, bool(kept["any_length"]))
