"""Which sizes of products give equal rows here: tried once a model, machine and number of threads, then remembered.

The sizes follow from the libraries, the processor and its number of threads, the shapes of the model and its precision,
not from the weights; the result is kept beside downloaded models, under a hash of all these.
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
from paliscribe.model.attention import over_slots
from paliscribe.model.download import cache_folder
from paliscribe.model.shapes import Run, Shapes, Sizes, choose

if TYPE_CHECKING:
    from paliscribe.model.paligemma import Model

log = logging.getLogger(__name__)
VERSION = 7  # of what is tried
SMALL = 2**23  # weights of a layer and the head below which a CPU has time to try many sizes
CPU_TOKENS, CPU_ROWS = (*range(64, 256, 16), *range(256, 1025, 32)), (1, *range(4, 65, 4))
LARGE_TOKENS, LARGE_ROWS = (64, 256), (1, 8, 16, 32, 64)  # of others on a CPU
GPU_TOKENS, GPU_ROWS = (512, 1024, 2048, 4096), (1, 8, 16, 32, 64, 128, 256)
IMAGES, LARGE_IMAGES = (1, 2, 4, 8, 16), (1,)
# What a call costs beside its rows, in rows: a decode step of any size reads all weights, a prefill's pieces do little
# that is not arithmetic.
CALLS = TOKENS_CALL, ROWS_CALL, IMAGES_CALL = 32, 64, 1
FAR = 1024  # tokens beside an image, up to which it is tried whether it shows how far a step looks
MATTERS = ("MKL", "ONEDNN", "DNNL", "OMP", "KMP", "ATEN", "TORCH", "PYTORCH", "CUBLAS", "CUDA", "NVIDIA")


def shapes_of(model: "Model") -> Shapes:
    """The shapes of a model here: as remembered, or tried now. Raises ReplicaError for a model that cannot be run."""
    candidates = _candidates(model)
    if model.spec.quantization == "int8":  # its outliers are those of a whole product: company shows, whatever its size
        tokens, rows, images = (Sizes(sizes, call) for sizes, call in zip(candidates, CALLS, strict=True))
        return Shapes(tokens, rows, images)
    kept = cache_folder() / "shapes" / f"{_key(model)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return _read(json.loads(kept.read_text()))
    begun = time.monotonic()
    try:
        found = _tried(model, *candidates)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = (str(error).strip() or "no words").splitlines()[0]
        raise ReplicaError(f"the model cannot answer: {type(error).__name__}: {said}") from None
    log.info("sizes with equal rows, tried in %.1f s: %s", time.monotonic() - begun, found.words())
    with contextlib.suppress(OSError):  # nowhere to remember it: it is tried again
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(found)))
        partial.replace(kept)
    return found


def _candidates(model: "Model") -> tuple[tuple[int, ...], ...]:
    """Sizes to try: of tokens, rows and images."""
    if model.device.type == "cuda":
        return GPU_TOKENS, GPU_ROWS, IMAGES
    if _large(model) or model.dtype != torch.float32:  # many processors have no fast way for two-byte numbers
        return LARGE_TOKENS, LARGE_ROWS, LARGE_IMAGES
    return CPU_TOKENS, CPU_ROWS, IMAGES


def _large(model: "Model") -> bool:
    block = model.network.model.language_model.layers[0]
    weights = sum(parameter.numel() for parameter in (*block.parameters(), model.network.lm_head.weight))
    return bool(weights >= SMALL)


@torch.inference_mode()
def _tried(model: "Model", tokens: tuple[int, ...], rows: tuple[int, ...], images: tuple[int, ...]) -> Shapes:
    make = _Pools(model)
    # Of float32 any row shows another order of sums; of two-byte numbers a last bit differs once in thousands of sums,
    # so that small models need many rows to show it.
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


class _Pools:
    """Random rows for each part of a model, and that part. One layer stands for all, as their shapes are the same."""

    def __init__(self, model: "Model") -> None:
        self.model, self.block = model, model.network.model.language_model.layers[0]
        self.hidden = int(model.config.hidden_size)
        self.heads = self.block.kv_heads, int(model.config.num_attention_heads)
        self._generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.model.device, self.model.dtype)

    def halves(self, count: int) -> list[tuple[Run, Tensor]]:
        """The two halves of a layer, and each product in them alone, where no sum with other rows hides a last bit."""
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
        return [(before, narrow), (after, joined), *((_one(product), pool) for product, pool in alone)]

    def finish(self, count: int) -> tuple[Run, Tensor]:
        """The end of the last layer, and the head."""
        wide = self.heads[1] * self.block.head_dim
        return _one(lambda rows: self.model.finish(rows[:, :wide], rows[:, wide:])), self.random(
            count, wide + self.hidden
        )

    def attend(self, count: int) -> tuple[Run, Tensor]:
        """A decode step's attention, two chunks far."""
        return self._over_slots(count, 2), torch.arange(count, device=self.model.device)

    def any_length(self, sizes: tuple[int, ...]) -> bool:
        """Whether it does not show how much further than its rows' own ends a step looks."""
        rows, chunk = next((size for size in sizes if size >= 8), sizes[-1]), self.model.chunk
        longest = min(self.model.context, self.model.image_tokens + FAR) // chunk
        places = torch.arange(rows, device=self.model.device)
        found = [self._over_slots(rows, chunks)(places)[0] for chunks in range(2, longest + 1)]
        return all(torch.equal(found[0], other) for other in found)

    def images(self, count: int) -> tuple[Run, Tensor]:
        """The encoder's first layers, and the projector."""
        size = self.model.image_size
        pixels = torch.randint(0, 256, (count, size, size, 3), generator=self._generator, dtype=torch.uint8)
        return _one(lambda some: self.model.see(some, 2)), pixels.to(self.model.device)

    def _over_slots(self, count: int, chunks: int) -> Run:
        """Attention of rows of two chunks at most, over so many: what lies beyond is random, and not seen."""
        block, chunk = self.block, self.model.chunk
        self._generator.manual_seed(1)
        query = self.random(count, self.heads[1], block.head_dim)
        near = self.random(2, count, self.heads[0], 2 * chunk, block.head_dim)
        ends = torch.randint(1, 2 * chunk, (count, 1, 1, 1), generator=self._generator).to(self.model.device)
        far = self.random(
            2, count, self.heads[0], (chunks - 1) * chunk, block.head_dim
        )  # a slot is longer than a step looks
        held = torch.cat([near, far], dim=3)
        hidden = torch.arange(chunks * chunk, device=self.model.device) >= ends

        def run(rows: Tensor) -> list[Tensor]:
            keys, values = held[:, rows][..., : chunks * chunk, :]
            return [over_slots(query[rows], keys, values, hidden[rows], chunk, block.scaling, block.softcap)]

        return run


def _one(function: Callable[[Tensor], Tensor]) -> Run:
    return lambda rows: [function(rows)]


def _key(model: "Model") -> str:
    """A hash of all that decides which sizes are alike."""
    cuda = model.device.type == "cuda"
    parts: dict[str, Any] = {
        "version": [VERSION, _candidates(model), CALLS],
        "torch": torch.__version__ + torch.__config__.show(),
        "device": torch.cuda.get_device_name(model.device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(MATTERS)},
        "model": [model.network.config.text_config.to_dict(), model.network.config.vision_config.to_dict()],
        "arithmetic": [str(model.dtype), model.spec.quantization, model.spec.double_quantization, model.compiled],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _processor() -> str:
    """Its name and abilities."""
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
