"""What exporters get: the pictures of a run, each with its answers after filters and review."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paliscribe.records import Box, Mask

BOX_KINDS = ("detect", "segment")
NO_LABEL = "object"  # what a box without a label is called


@dataclass(frozen=True, slots=True)
class Region:
    """A box inside its picture, with a side of more than 0 each, and the mask that belongs to it, if there is one."""

    box: Box
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one task, with the reviewer's corrections.

    `number`: of the task in the run's list, from 1. `regions`: its boxes, clipped to the picture, with labels that are
    not empty; only for the kinds of `BOX_KINDS`. `review`: the verdict of its mark, or None. `record`: the values of
    the result columns.
    """

    task: str
    kind: str
    number: int
    text: str | None
    score: float | None
    regions: tuple[Region, ...]
    review: str | None
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the task where one may have letters, digits and `_` only, such as `detect_4`."""
        return f"{self.kind}_{self.number}"


@dataclass(slots=True)
class Picture:
    """A row of the manifest with its answers, in the order of the run's tasks.

    `stem`: its file name without suffix, see `names.stem`. `columns`: the manifest's own columns. Where pictures are
    copied, either `file` is the key of the copy below the destination, or `data` are the bytes; `suffix` is that of
    their format, as `.jpg`.
    """

    row: int
    id: str
    stem: str
    image: str | None
    sha256: str | None
    shard: int
    width: int
    height: int
    columns: Mapping[str, Any]
    answers: list[Answer] = field(default_factory=list)
    file: str | None = None
    data: bytes | None = None
    suffix: str = ""

    @property
    def place(self) -> str:
        """The copy of the picture below the destination, or the address that the run read."""
        return self.file or self.image or ""

    def regions(self) -> list[tuple[Answer, Region]]:
        """All boxes with the answers that they are of."""
        return [(answer, region) for answer in self.answers for region in answer.regions]
