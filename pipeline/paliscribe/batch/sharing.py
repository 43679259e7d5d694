"""Answers that rows share: of equal requests for equal images, a stage process sends one."""

from collections.abc import Hashable
from dataclasses import dataclass

from paliscribe.records import Prediction, Request

KEPT = 8192  # answers that a stage process keeps for further rows


@dataclass(slots=True)
class Answer:
    """The answer to a request, once it has come."""

    prediction: Prediction | None = None


class SharedAnswers:
    """The answers to the last requests that differ. One thread asks; another sets the predictions.

    An answer follows from image, prompt and options alone, so that rows which share one get the records that they would
    get from answers of their own. Errors are not shared with later calls.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, Answer] = {}

    def of(self, request: Request) -> tuple[Answer, bool]:
        """The answer to a request, and whether the request must be sent for it."""
        options = (request.max_tokens, request.temperature, request.top_p, request.seed, request.stop)
        key = (request.image_key, request.prompt, *options)
        known = self._kept.pop(key, None)
        if known is not None and known.prediction is not None and known.prediction.error_kind is not None:
            known = None
        answer = known or Answer()
        self._kept[key] = answer  # the last one used is the last one dropped
        if len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept)))
        return answer, known is None
