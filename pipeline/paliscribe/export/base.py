"""What a format of exports is, and what its writer gets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target


@dataclass(frozen=True, slots=True)
class Run:
    """What a writer knows before the first picture.

    `output`: address of the run. `tasks`: all tasks of the run, whatever is exported, with their kinds; a task whose
    prompts come from a column may have several. `labels`: all labels of the run, sorted, then those that only
    corrections have: the place of a label is its category in every export of this run. `schema`: columns of the
    results, the manifest's own behind them. `images`: whether pictures are copied.
    """

    output: str
    model: str
    revision: str
    tasks: tuple[tuple[str, tuple[str, ...]], ...]
    labels: tuple[str, ...]
    schema: pa.Schema
    images: bool
    places: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places.update({label: place for place, label in enumerate(self.labels)})


class Writer(Protocol):
    """Writes an export. Pictures come in the order of the manifest, and each only once."""

    def add(self, picture: Picture) -> None:
        """Write a picture with its answers. It keeps nothing of them."""

    def close(self) -> None:
        """Write what comes last."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of exports, registered in `registry.FORMATS`.

    `words`: what is written, for the docs. `reader`: a program that reads it. `boxes`: whether it holds boxes only;
    then the pictures have no answers of other kinds than `BOX_KINDS`. `folder`: where copies of pictures go, below the
    destination; None: the writer stores their bytes itself. `writer`: makes the writer of an export.
    """

    words: str
    reader: str
    writer: Callable[[Target, Run], Writer]
    boxes: bool = False
    folder: str | None = "images"
