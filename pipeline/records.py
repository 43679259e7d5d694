"""The values that travel: from a manifest row to a request, a prediction, an annotation and a result record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Status = Literal["ok", "invalid", "error"]
FinishReason = Literal["stop", "length"]
ONLINE, BATCH = 0, 1  # Request.priority: smaller is served first


@dataclass(frozen=True, slots=True)
class Box:
    """A detected box in pixels of the upright original image; `score` is a probability or None."""

    label: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """A segment: its box, its 16 codebook indices (0..127), and, once decoded, its run lengths.

    `rle` is COCO's uncompressed form over the whole original image: column-major (Fortran order) counts that
    begin with background; None where no mask decoder was given.
    """

    label: str
    box: Box
    codes: tuple[int, ...]
    height: int
    width: int
    rle: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """A parsed answer. `invalid` marks output that breaks the task's grammar; the raw text is always kept."""

    status: Literal["ok", "invalid"]
    text: str
    boxes: tuple[Box, ...] = ()
    masks: tuple[Mask, ...] = ()
    problem: str | None = None  # what was malformed, where status is invalid


@dataclass(slots=True)
class Request:
    """One prompt asked of one image, as the engine sees it.

    `pixels`: uint8 [H, W, 3] at the model's resolution. Requests that share `image_key` share one vision pass.
    """

    id: str
    prompt: str
    pixels: npt.NDArray[np.uint8]
    image_key: str
    max_tokens: int
    priority: int = BATCH


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the engine answers: text with special tokens but `<loc>`/`<seg>` removed, or an error of this request.

    `tokens` are the generated ids without end-of-sequence; `logprobs` one natural logarithm per generated step
    (the end-of-sequence step included), so its mean is the score even of an empty answer.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None
    error_kind: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image of the frozen manifest. `row` counts from 0 over the whole manifest; `image` may be None."""

    row: int
    id: str
    image: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One row under one task, as it is published: see `results.schema` for units and meanings."""

    id: str
    image: str | None
    task: str
    kind: str
    prompt: str | None
    status: Status
    text: str | None
    boxes: tuple[Box, ...]
    masks: tuple[Mask, ...]
    score: float | None
    tokens: int | None
    finish_reason: str | None
    error_kind: str | None
    error_message: str | None
    width: int | None
    height: int | None
    image_sha256: str | None
    shard: int
    row: int
    columns: Mapping[str, Any] = field(default_factory=dict)
