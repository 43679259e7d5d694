"""Data classes of the pipeline: manifest row, request, prediction, annotation, result record."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Status = Literal["ok", "invalid", "error"]
FinishReason = Literal["stop", "length"]
ONLINE, BATCH = 0, 1  # Request.priority; lower values are scheduled first


@dataclass(frozen=True, slots=True)
class Box:
    """A detected box, in pixels of the original image after Exif rotation. `score`: a probability, or None."""

    label: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Mask:
    """A segmentation mask: its box, 16 codebook indices (0..127) and, once decoded, run lengths.

    `rle`: COCO's uncompressed RLE over the whole original image, column-major (Fortran order) counts starting with
    background; None without a mask decoder.
    """

    label: str
    box: Box
    codes: tuple[int, ...]
    height: int
    width: int
    rle: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Annotation:
    """A parsed answer. Status `invalid`: the output violates the task's grammar. `text` is always the raw output."""

    status: Literal["ok", "invalid"]
    text: str
    boxes: tuple[Box, ...] = ()
    masks: tuple[Mask, ...] = ()
    problem: str | None = None  # what is malformed, if status is invalid


@dataclass(slots=True)
class Request:
    """One prompt for one image, as the engine takes it.

    `pixels`: uint8 [H, W, 3] at the model's resolution. `image_key`: requests with equal keys share one pass of the
    vision encoder. `temperature`: 0 is greedy; above 0 tokens are sampled from the `top_p` nucleus, deterministically
    for a `seed`. `stop`: generation ends before any of these strings. `timeout`: seconds from submission. `spelled`:
    also return the text of each token.
    """

    id: str
    prompt: str
    pixels: npt.NDArray[np.uint8]
    image_key: str
    max_tokens: int
    priority: int = BATCH
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    timeout: float | None = None
    spelled: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """The engine's answer to a request, or its error.

    `text`: the output without special tokens; `<loc>` and `<seg>` are kept. `tokens`: generated ids without
    end-of-sequence. `logprobs`: natural logarithms, one a generated step, end-of-sequence included, so that an empty
    answer has a score too; of the model's own distribution, whatever the temperature. `ends`: length of the text after
    each token, in characters; only for answers with boxes and `spelled` requests. `prompt_tokens`: tokens of image and
    prompt. `first_token`, `seconds`: latency from submission to the first token and to the whole answer. `replica`:
    the replica that answered. The last three are not compared.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason | None
    error_kind: str | None = None
    error_message: str | None = None
    ends: tuple[int, ...] = ()
    prompt_tokens: int = 0
    first_token: float | None = field(default=None, compare=False)
    seconds: float | None = field(default=None, compare=False)
    replica: str = field(default="", compare=False)

    def score(self, start: int = 0, end: int | None = None) -> float | None:
        """Mean probability of the tokens of `text[start:end]`; without `end`, of all steps.

        Rounded to 4 digits; the rest is numerical noise. None where `ends` are not known.
        """
        steps: Sequence[int] = range(len(self.logprobs))
        if end is not None:
            starts = (0, *self.ends[:-1])
            steps = [
                i for i, span in enumerate(zip(starts, self.ends, strict=False)) if span[0] < end and span[1] > start
            ]
        return round(math.fsum(math.exp(self.logprobs[i]) for i in steps) / len(steps), 4) if steps else None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer. The pieces concatenated equal the prediction.

    `spelling`: the text of each token, for `spelled` requests.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    spelling: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image of the frozen manifest. `row`: index in the whole manifest, from 0. `image`: its address, or None."""

    row: int
    id: str
    image: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """The published result of one row under one task. See `results.schema` for units and meanings."""

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
    prompt_tokens: int | None
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
