"""Data classes of a scene: shapes and text on a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from paliscribe.demo.digits import Split

ShapeKind = Literal["circle", "square", "star", "triangle"]
TextKind = Literal["number", "letters", "handwriting"]
Box = tuple[float, float, float, float]  # x_min, y_min, x_max, y_max in pixels of the scene
Rgb = tuple[int, int, int]

SHAPES: tuple[ShapeKind, ...] = ("circle", "square", "star", "triangle")
TEXT_KINDS: tuple[TextKind, ...] = ("number", "letters", "handwriting")
COLORS: dict[str, Rgb] = {
    "blue": (40, 80, 220),
    "green": (35, 150, 55),
    "orange": (245, 140, 20),
    "purple": (140, 50, 175),
    "red": (215, 35, 40),
    "yellow": (245, 220, 40),
}
DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

DEV_SEEDS = 1_000_000_000
"""First seed of the development split; lower seeds are the training split."""
TEST_SEEDS = 2_000_000_000
"""First seed of the held-out test split."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon or ellipse. `box`: its tight bounding box."""

    kind: ShapeKind
    color: str
    paint: Rgb
    outline: tuple[tuple[float, float], ...]  # corner points in pixels; empty for a circle
    box: Box

    def called(self, label: str) -> bool:
        """Whether a label names it: its kind (`circle`), or that with its colour (`red circle`)."""
        return label in (self.kind, f"{self.color} {self.kind}")


@dataclass(frozen=True, slots=True)
class Glyph:
    """One character and its box. `digit`: for handwriting, index of the digit image in the split."""

    char: str
    box: Box
    digit: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """One line of characters of one kind."""

    kind: TextKind
    glyphs: tuple[Glyph, ...]
    paint: Rgb
    size: int  # font size in pixels
    stroke: int  # stroke width in pixels, which makes printed text bold

    @property
    def content(self) -> str:
        """The characters as one string."""
        return "".join(glyph.char for glyph in self.glyphs)


@dataclass(frozen=True, slots=True)
class Background:
    """A small grid of colours, scaled to the canvas: bilinear if `smooth`, else nearest."""

    columns: int
    rows: int
    pixels: bytes  # rows * columns * 3
    smooth: bool
    dark: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of a canvas of `width` x `height` pixels."""

    seed: int
    width: int
    height: int
    background: Background
    shapes: tuple[Shape, ...]  # left to right
    texts: tuple[Text, ...]

    @property
    def text(self) -> str:
        """All text of the scene; empty if there is none."""
        return " ".join(text.content for text in self.texts)


def split_of(seed: int) -> Split:
    """The split of a seed. Handwriting uses digits of the same split."""
    if seed >= TEST_SEEDS:
        return "test"
    return "dev" if seed >= DEV_SEEDS else "train"
