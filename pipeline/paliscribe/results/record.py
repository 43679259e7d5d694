"""Builds the result record of one row under one task."""

from dataclasses import replace
from typing import TYPE_CHECKING

from paliscribe.errors import RowError, UsageError
from paliscribe.grammar.masks import MaskDecoder
from paliscribe.grammar.tasks import Task
from paliscribe.records import Annotation, ManifestRow, Prediction, Record
from paliscribe.storage import StorageError, open_store, split
from paliscribe.storage.inline import shortened

if TYPE_CHECKING:
    from paliscribe.images.decode import Decoded


def record(
    row: ManifestRow,
    task: Task,
    prompt: str | None,
    image: "Decoded | None",
    prediction: Prediction | None,
    error: RowError | None,
    shard: int,
    masks: MaskDecoder | None,
) -> Record:
    """The record of one row under one task, from its prediction or its error."""
    kind, message = (error.kind, error.message) if error is not None else (None, None)
    annotation: Annotation | None = None
    score: float | None = None
    if prediction is not None and prediction.error_kind is not None:
        kind, message = prediction.error_kind, prediction.error_message  # type: ignore[assignment]
    elif prediction is not None and image is not None:
        annotation = task.parse(prediction.text, image.width, image.height, prediction.score)
        score = prediction.score()
        if masks is not None and annotation.masks:
            annotation = replace(annotation, masks=tuple(masks.fill(mask) for mask in annotation.masks))
    answered = annotation is not None and prediction is not None
    return Record(
        id=row.id,
        image=shortened(row.image) if row.image is not None else None,
        task=task.template,
        kind=task.kind,
        prompt=prompt,
        status=annotation.status if annotation is not None else "error",
        text=annotation.text if annotation is not None else None,
        boxes=annotation.boxes if annotation is not None else (),
        masks=annotation.masks if annotation is not None else (),
        score=score,
        prompt_tokens=prediction.prompt_tokens if answered and prediction is not None else None,
        tokens=len(prediction.tokens) if answered and prediction is not None else None,
        finish_reason=prediction.finish_reason if answered and prediction is not None else None,
        error_kind=kind,
        error_message=message if annotation is None else annotation.problem,
        width=image.width if image is not None else None,
        height=image.height if image is not None else None,
        image_sha256=image.sha256 if image is not None else None,
        shard=shard,
        row=row.row,
        columns=row.columns,
    )


def load_mask_decoder(uri: str | None) -> MaskDecoder | None:
    """The mask decoder at this address; None without one. Raises UsageError if it is unreadable or invalid."""
    if uri is None:
        return None
    folder, name = split(uri)
    try:
        return MaskDecoder.from_npz(open_store(folder).get(name))
    except StorageError as error:
        raise UsageError(f"mask_decoder {uri}: {error}") from None
