"""One image, one prompt, one answer, in this process: the shortest way through images, engine and tasks."""

from typing import Any

from paliscribe.config import FetchConfig, ModelSpec
from paliscribe.engine import Engine
from paliscribe.errors import RowError, RunError, UsageError
from paliscribe.grammar.tasks import parse_task
from paliscribe.images.decode import decode
from paliscribe.images.fetch import Fetcher
from paliscribe.model import paligemma as model
from paliscribe.records import ONLINE, ManifestRow, Request
from paliscribe.results import record_values
from paliscribe.results.record import record


def answer(image: str, prompt: str, spec: ModelSpec, *, max_tokens: int | None = None) -> dict[str, Any]:
    """The record that a batch would write for this image under this task, as plain values.

    Raises UsageError for an image that cannot be read or a prompt that cannot be asked, RunError if the model fails.
    """
    task = parse_task(prompt, max_tokens=max_tokens)
    limits = FetchConfig()
    try:
        rendered = task.render({})
        data = Fetcher(retries=limits.retries, timeout=limits.timeout, max_bytes=limits.max_bytes).fetch(image)
        loaded = model.load(spec)
        decoded = decode(data, loaded.image_size, max_pixels=limits.max_pixels)
    except RowError as error:
        raise UsageError(f"{image}: {error}") from None
    request = Request("0", rendered, decoded.pixels, decoded.sha256, task.max_tokens, ONLINE)
    prediction = Engine(loaded).run([request])[0]
    if prediction.error_kind is not None:
        raise RunError(f"{image}: {prediction.error_message}")
    row = ManifestRow(0, image, image)
    return record_values(record(row, task, rendered, decoded, prediction, None, 0, None))


def answer_words(values: dict[str, Any]) -> str:
    """The answer for people: its text, then a line a box."""
    lines = [values["text"]] if values["text"] and not values["boxes"] else []
    for box in values["boxes"]:
        corners = ", ".join(f"{box[side]:.0f}" for side in ("x_min", "y_min", "x_max", "y_max"))
        lines.append(f"{box['label']}: {corners}  (x_min, y_min, x_max, y_max in pixels)")
    if values["status"] == "invalid":
        lines.append(f"(the output breaks the task's grammar: {values['error_message']})")
    return "\n".join(lines) or "(nothing found)"
