"""What a scene is: shapes and text on a canvas, as plain values."""

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
TEST_SEEDS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon or ellipse; `box` is tight around it."""

    kind: ShapeKind
    color: str
    paint: Rgb
    outline: tuple[tuple[float, float], ...]  # corner points in pixels; empty for a circle
    box: Box


@dataclass(frozen=True, slots=True)
class Glyph:
    """One character: the box it fills, and for handwriting which digit image of the split it is."""

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
    stroke: int  # extra stroke in pixels, which makes printed text bold

    @property
    def content(self) -> str:
        """The characters as one string."""
        return "".join(glyph.char for glyph in self.glyphs)


@dataclass(frozen=True, slots=True)
class Background:
    """A small grid of colours, stretched over the canvas smoothly or in blocks."""

    columns: int
    rows: int
    pixels: bytes  # rows * columns * 3
    smooth: bool
    dark: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to see, and where, in pixels of a canvas of `width` x `height`."""

    seed: int
    width: int
    height: int
    background: Background
    shapes: tuple[Shape, ...]  # left to right
    texts: tuple[Text, ...]

    @property
    def text(self) -> str:
        """Everything written in the scene; empty where nothing is."""
        return " ".join(text.content for text in self.texts)


def split_of(seed: int) -> Split:
    """Which split a seed belongs to; handwriting is drawn from the digits of the same split."""
    if seed >= TEST_SEEDS:
        return "test"
    return "dev" if seed >= DEV_SEEDS else "train"
