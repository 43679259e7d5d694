"""The values that travel: from a manifest row to a request, a prediction, an annotation and a result record."""

import math
from collections.abc import Mapping, Sequence
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
    `temperature` 0 is greedy; above it the answer is drawn from the `top_p` share of the probability, and equal
    seeds draw equal answers. The answer ends before any of the `stop` strings. `timeout`: seconds from submission.
    `spelled` asks for the text of every token.
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
    """What the engine answers: text with special tokens but `<loc>`/`<seg>` removed, or an error of this request.

    `tokens` are the generated ids without end-of-sequence; `logprobs` one natural logarithm per generated step
    (the end-of-sequence step included), so its mean is the score even of an empty answer. They are those of the
    model's own distribution, whatever the temperature. `ends`, for an answer with boxes or one that was to be spelled:
    the length of the text after each token, in characters. `prompt_tokens`: those of the image and the prompt.
    `first_token` and `seconds`: from submission to the first token and to the whole answer; `replica`: who answered.
    These three are not part of the answer.
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
        """Mean probability of the tokens that wrote `text[start:end]`; without bounds that of every step.

        Rounded to 4 digits, the rest being noise of the arithmetic. None where `ends` are not known.
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
    """A part of an answer under way: what a token callback is given. The pieces joined are the prediction's.

    `spelling`: the text of each of its tokens, if the request asked for it.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    spelling: tuple[str, ...] = ()


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
