"""Masks of shapes: as drawn, and as one of a few prototypes that the demo's mask codes stand for.

In the square of its box a shape has two properties: its kind and its tilt. Tilts are rounded to `TILTS`, so the model
has to learn few sequences of codes.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from paliscribe.demo.drawing import paint
from paliscribe.demo.sampling import corners
from paliscribe.demo.scenes import SHAPES, Scene, Shape, ShapeKind

SIDE = 64  # pixels a side of a mask in its box
TILTS = tuple(range(-12, 13, 3))  # degrees, clockwise
Prototype = tuple[ShapeKind, int]  # kind and tilt; a circle's tilt is 0


def prototypes() -> Iterator[Prototype]:
    """All 28 prototypes."""
    for kind in SHAPES:
        for tilt in (0,) if kind == "circle" else TILTS:
            yield kind, tilt


def prototype(shape: Shape) -> Prototype:
    """The prototype nearest to a shape."""
    if not shape.outline:
        return shape.kind, 0
    x, y = (np.mean(axis) for axis in zip(*shape.outline, strict=True))
    straight = math.atan2(*reversed(corners(shape.kind, 1.0, 0.0)[0]))
    tilt = math.degrees(math.atan2(shape.outline[0][1] - y, shape.outline[0][0] - x) - straight)
    return shape.kind, min(TILTS, key=lambda known: abs(known - tilt))


def prototype_mask(chosen: Prototype, side: int = 4 * SIDE) -> NDArray[np.float32]:
    """A prototype's mask as float32 [64, 64], 0 to 1, from a drawing of about `side` pixels."""
    kind, tilt = chosen
    points = corners(kind, side / 2, math.radians(tilt)) if kind != "circle" else [(0.0, 0.0), (side, side)]
    left, top = (min(axis) for axis in zip(*points, strict=True))
    outline = tuple((x - left, y - top) for x, y in points)
    right, bottom = (max(axis) for axis in zip(*outline, strict=True))
    shape = Shape(kind, "", (0, 0, 0), () if kind == "circle" else outline, (0, 0, right, bottom))
    return in_box(drawn(shape, math.ceil(right) + 1, math.ceil(bottom) + 1), shape)


def drawn(shape: Shape, width: int, height: int) -> NDArray[np.bool_]:
    """The pixels bool [height, width] that a shape paints."""
    image = Image.new("1", (width, height))
    paint(ImageDraw.Draw(image), shape, 1)
    return np.asarray(image)


def masks(scene: Scene, label: str) -> list[NDArray[np.bool_]]:
    """Masks bool [height, width] of the shapes that a label names, left to right."""
    return [drawn(shape, scene.width, scene.height) for shape in scene.shapes if shape.called(label)]


def in_box(mask: NDArray[np.bool_], shape: Shape) -> NDArray[np.float32]:
    """The part of a mask in its shape's box, whose edges are rounded to pixels, as float32 [64, 64], 0 to 1."""
    left, top, right, bottom = (round(edge) for edge in shape.box)
    part = Image.fromarray(mask[top:bottom, left:right].astype(np.float32))
    return np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
