"""Answers one prompt about one image in this process, without Ray."""

import functools
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from paliscribe.config import FetchConfig, ModelSpec, validated
from paliscribe.errors import RowError, RunError, UsageError
from paliscribe.records import ONLINE, ManifestRow, Record, Request

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from PIL import Image

    from paliscribe.engine import Engine

LIMITS = FetchConfig(retries=1, timeout=10.0)  # somebody waits for the answer


def ask(
    image: "str | Path | bytes | Image.Image | npt.NDArray[np.uint8]",
    prompt: str,
    *,
    model: str | dict[str, Any] | ModelSpec = "demo",
    max_tokens: int | None = None,
    mask_decoder: str | None = None,
) -> Record:
    """Answer one prompt about one image. Returns the same record as a run.

    `image`: a path or address (s3://, http(s)://, data:), encoded bytes, a PIL image, or a uint8 array
    [height, width, 3] or [height, width] (grey). `prompt`: in PaliGemma's grammar, such as `caption en` or
    `detect cat ; dog`. `model`: an id, a folder, or a dict of model settings as in a job file; the model of the last
    call stays loaded. `mask_decoder`: address of PaliGemma's `vae-oid.npz`, which decodes the masks of `segment`;
    the demo has its own.

    Boxes are in pixels of the image after Exif rotation. Raises UsageError for an unreadable image or an invalid
    prompt, RunError if the model fails.
    """
    return answered(image, prompt, model=model, max_tokens=max_tokens, mask_decoder=mask_decoder)[0]


def answered(
    image: Any,
    prompt: str,
    *,
    model: str | dict[str, Any] | ModelSpec = "demo",
    max_tokens: int | None = None,
    mask_decoder: str | None = None,
) -> tuple[Record, bytes]:
    """The record that `ask` returns, and the encoded image. Raises the same errors, before torch is imported."""
    from paliscribe.grammar.tasks import parse_task

    if not isinstance(model, ModelSpec):
        model = validated(ModelSpec, {"id": model} if isinstance(model, str) else dict(model), "model")
    task = parse_task(prompt, max_tokens=max_tokens)
    name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"the {type(image).__name__} given"
    try:
        rendered = task.render({})
        data = _encoded(image)
        size = _image_size(model)
        from paliscribe.images.decode import Limits, decode
        from paliscribe.model.masks import decoder_of
        from paliscribe.results.record import record

        masks = decoder_of(model.id, mask_decoder)
        most = Limits(LIMITS.decode_seconds, LIMITS.decode_memory)
        decoded = decode(data, size, max_pixels=LIMITS.max_pixels, limits=most)
        engine = _engine(model)
    except RowError as error:
        raise UsageError(f"{name}: {error}") from None
    request = Request("0", rendered, decoded.pixels, decoded.sha256, task.max_tokens, ONLINE)
    prediction = engine.run([request])[0]
    if prediction.error_kind is not None:
        raise RunError(f"{name}: {prediction.error_message}")
    return record(ManifestRow(0, name, name), task, rendered, decoded, prediction, None, 0, masks), data


@functools.lru_cache(maxsize=1)
def _image_size(spec: ModelSpec) -> int:
    from paliscribe.model.weights import locate

    return locate(spec).image_size


@functools.lru_cache(maxsize=1)
def _engine(spec: ModelSpec) -> "Engine":
    from paliscribe.engine import Engine
    from paliscribe.model import paligemma

    return Engine(paligemma.load(spec))


def _encoded(image: Any) -> bytes:
    """The image as encoded bytes; PIL images and arrays become PNG. Raises RowError, UsageError."""
    if isinstance(image, str | os.PathLike):
        from paliscribe.images.fetch import Fetcher

        fetcher = Fetcher(retries=LIMITS.retries, timeout=LIMITS.timeout, max_bytes=LIMITS.max_bytes)
        return fetcher.fetch(os.fspath(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise UsageError(f"image: expected a uint8 array [height, width, 3], not {image.dtype} {list(image.shape)}")
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"image: expected a path, bytes, a PIL image or an array, not {type(image).__name__}")
    if not all(image.size):
        raise UsageError(f"image: empty, its size is {image.width} x {image.height}")
    buffer = io.BytesIO()
    kept = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
    kept.save(buffer, "PNG", exif=image.getexif())  # lossless; keeps the Exif orientation
    return buffer.getvalue()
