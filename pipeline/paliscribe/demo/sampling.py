"""Samples scenes of coloured shapes, printed text and handwriting, deterministically for a seed.

A scene describes what is on the canvas and where, in pixels. `drawing` renders it; `answers` makes prompts with their
expected answers. The seed determines the split: see `split_of`.
"""

from __future__ import annotations

import math
import random

from paliscribe.demo.digits import Split, digits
from paliscribe.demo.scenes import (
    COLORS,
    DIGITS,
    LETTERS,
    SHAPES,
    TEXT_KINDS,
    Background,
    Box,
    Glyph,
    Scene,
    Shape,
    ShapeKind,
    Text,
    TextKind,
    split_of,
)


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: half of them have shapes only, half a text and up to two shapes."""
    rng = random.Random(f"scene {seed}")
    width, height = _canvas(rng)
    background = _background(rng)
    texts: tuple[Text, ...] = ()
    if rng.random() < 0.5:
        texts = (_text(rng, rng.choice(TEXT_KINDS), background.dark, width, height, split_of(seed)),)
        count = rng.choices((0, 1, 2), (40, 40, 20))[0]
    else:
        count = rng.choices((0, 1, 2, 3, 4), (8, 22, 24, 23, 23))[0]
    taken = [_line_box(text) for text in texts]
    shapes = _shapes(rng, count, width, height, taken)
    return Scene(seed, width, height, background, shapes, texts)


def sample_page(seed: int) -> Scene:
    """A scene with many lines of text of all kinds: dense supervision for OCR."""
    rng = random.Random(f"page {seed}")
    width, height = _canvas(rng)
    background = _background(rng)
    texts: list[Text] = []
    for _ in range(14):
        text = _text(rng, rng.choice(TEXT_KINDS), background.dark, width, height, split_of(seed))
        if all(_apart(_line_box(text), _line_box(other), 1) for other in texts):
            texts.append(text)
    shapes = _shapes(rng, rng.choice((0, 0, 1)), width, height, [_line_box(text) for text in texts])
    return Scene(seed, width, height, background, shapes, tuple(texts))


def _canvas(rng: random.Random) -> tuple[int, int]:
    while True:
        width, height = rng.randint(160, 480), rng.randint(160, 480)
        if 0.66 <= width / height <= 1.5:
            return width, height


def _background(rng: random.Random) -> Background:
    dark = rng.random() < 0.3
    base, spread = (rng.randint(5, 45), 22) if dark else (rng.randint(195, 245), 26)
    columns, rows, smooth = rng.choice(
        ((1, 1, True), (2, 2, True), (12, 12, True), (24, 24, False), (6, 1, False), (1, 6, False), (8, 8, False))
    )
    tint = [rng.randint(-8, 8) for _ in range(3)]
    pixels = bytearray()
    for _ in range(columns * rows):
        shade = base + rng.randint(-spread, spread)
        pixels += bytes(min(255, max(0, shade + channel)) for channel in tint)
    return Background(columns, rows, bytes(pixels), smooth, dark)


def _shapes(rng: random.Random, count: int, width: int, height: int, taken: list[Box]) -> tuple[Shape, ...]:
    """Up to `count` shapes that overlap neither each other nor the boxes in `taken`."""
    boxes = list(taken)
    shapes: list[Shape] = []
    for _ in range(count):
        for _ in range(25):
            size = rng.uniform(0.19, 0.38) * math.sqrt(width * height)
            if size > 0.6 * min(width, height):
                continue
            shape = _shape(rng, size, width, height)
            if all(_apart(shape.box, box, 3) for box in boxes):
                shapes.append(shape)
                boxes.append(shape.box)
                break
    return tuple(sorted(shapes, key=lambda shape: shape.box[0] + shape.box[2]))


def _shape(rng: random.Random, size: float, width: int, height: int) -> Shape:
    """A shape about `size` pixels wide at a random position inside the canvas."""
    kind = rng.choice(SHAPES)
    color = rng.choice(tuple(COLORS))
    red, green, blue = (min(255, max(0, channel + rng.randint(-14, 14))) for channel in COLORS[color])
    tilt = math.radians(rng.uniform(-12, 12))
    radius = size / 2
    if kind == "circle":
        left, top, right, bottom = -radius, -radius, radius, radius
        points: list[tuple[float, float]] = []
    else:
        points = corners(kind, radius, tilt)
        left, right = min(x for x, _ in points), max(x for x, _ in points)
        top, bottom = min(y for _, y in points), max(y for _, y in points)
    # Integer offsets, so that the drawn shape and the stored box do not differ by rounding.
    dx = rng.randint(2, max(2, int(width - (right - left)) - 3)) - left
    dy = rng.randint(2, max(2, int(height - (bottom - top)) - 3)) - top
    outline = tuple((x + dx, y + dy) for x, y in points)
    return Shape(kind, color, (red, green, blue), outline, (left + dx, top + dy, right + dx, bottom + dy))


def corners(kind: ShapeKind, radius: float, tilt: float) -> list[tuple[float, float]]:
    """Corner points of a shape around the origin, y down. `tilt` in radians."""
    if kind == "square":
        turns, radii = [math.pi / 4 + i * math.pi / 2 for i in range(4)], [radius * 1.25]
    elif kind == "triangle":
        turns, radii = [-math.pi / 2 + i * 2 * math.pi / 3 for i in range(3)], [radius * 1.15]
    else:
        turns, radii = [-math.pi / 2 + i * math.pi / 5 for i in range(10)], [radius * 1.15, radius * 0.5]
    return [
        (radii[i % len(radii)] * math.cos(turn + tilt), radii[i % len(radii)] * math.sin(turn + tilt))
        for i, turn in enumerate(turns)
    ]


def _text(rng: random.Random, kind: TextKind, dark: bool, width: int, height: int, split: Split) -> Text:
    """One line of 1 to 4 characters at a random position inside the canvas."""
    from paliscribe.demo.drawing import printed_boxes

    lightness = (190, 255) if dark else (0, 80)
    paint = (rng.randint(*lightness), rng.randint(*lightness), rng.randint(*lightness))
    mean_side = math.sqrt(width * height)
    gap = rng.uniform(0.03, 0.12)
    if kind == "handwriting":
        labels = digits(split)[1]
        picks = [rng.randrange(len(labels)) for _ in range(rng.choice((1, 2, 2, 3)))]
        pitch = 0.72 + gap  # of the size: digit images have empty margins, so they may overlap a little
        size = int(min(rng.uniform(0.28, 0.38) * mean_side, 0.96 * width / (1 + pitch * (len(picks) - 1))))
        boxes: list[Box] = [(i * size * pitch, 0.0, i * size * pitch + size, size) for i in range(len(picks))]
        chars, stroke = [str(labels[pick]) for pick in picks], 0
        indices: list[int | None] = list(picks)
    else:
        chars = rng.choices(DIGITS if kind == "number" else LETTERS, k=rng.choice((2, 3, 3, 4)))
        size = int(rng.uniform(0.3, 0.42) * mean_side)
        stroke = rng.choice((0, max(1, size // 30)))
        size, boxes = printed_boxes(chars, size, stroke, gap, 0.94 * width)
        indices = [None] * len(chars)
    right, top, bottom = max(b[2] for b in boxes), min(b[1] for b in boxes), max(b[3] for b in boxes)
    dx = rng.randint(1, max(1, int(width - right) - 2))
    dy = rng.randint(1, max(1, int(height - (bottom - top)) - 2)) - int(top)
    glyphs = tuple(
        Glyph(char, (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy), index)
        for char, box, index in zip(chars, boxes, indices, strict=True)
    )
    return Text(kind, glyphs, paint, size, stroke)


def _line_box(text: Text) -> Box:
    boxes = [glyph.box for glyph in text.glyphs]
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def _apart(one: Box, other: Box, gap: float) -> bool:
    return one[2] + gap <= other[0] or other[2] + gap <= one[0] or one[3] + gap <= other[1] or other[3] + gap <= one[1]
