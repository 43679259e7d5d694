"""Scores of an export as probabilities, by the maps that `paliscribe evaluate --fit` keeps beside a run."""

from collections.abc import Mapping
from typing import Any

from paliscribe.errors import RunError, UsageError
from paliscribe.evaluation.calibration import ScoreMap, read_maps
from paliscribe.storage import StorageError, Store

Maps = Mapping[tuple[str, str], ScoreMap]  # by task and kind


def kept_maps(store: Store) -> Maps:
    """The maps of a run. Raises UsageError if there are none, RunError if the store fails."""
    try:
        maps = read_maps(store)
    except StorageError as error:
        raise RunError(str(error)) from None
    if not maps:
        raise UsageError(
            f"--calibrated: {store.uri} has no maps of scores; "
            "`paliscribe evaluate OUTPUT --truth FILE --fit` makes them"
        )
    return maps


def calibrate(record: dict[str, Any], found: ScoreMap | None) -> None:
    """Replace the scores of a record by probabilities; by null those that the map is not for."""
    of_record, of_boxes = (found if found and found.level == level else None for level in ("record", "box"))
    record["score"] = _mapped(record["score"], of_record)
    for name in ("boxes", "masks"):
        for each in record[name] or ():
            each["score"] = _mapped(each["score"], of_boxes)


def _mapped(score: float | None, found: ScoreMap | None) -> float | None:
    return None if score is None or found is None else round(float(found(score)), 4)
