"""Prompts in PaliGemma's grammar for a scene, with their expected answers."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from paliscribe.demo.masks import prototype
from paliscribe.demo.scenes import COLORS, SHAPES, Box, Scene

NUMBERS = ("no", "a", "two", "three", "four", "five", "six")


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt about a scene and its expected answer.

    `kind`: count, color, shape or exists for `answer`; number, letters, handwriting or none for `ocr`; present or
    absent for `detect` and `segment`; empty for `caption`. `boxes`: labels and ground-truth boxes of `detect` and
    `segment`, in pixels. The answer to `segment` has `<mask KIND TILT>`, a prototype, for the codes of a mask.
    """

    task: str  # caption, ocr, answer, detect or segment
    kind: str
    prompt: str
    answer: str
    boxes: tuple[tuple[str, Box], ...] = ()


def scene_items(scene: Scene) -> list[Item]:
    """Prompts of every kind that fits the scene, deterministic for its seed."""
    rng = random.Random(f"items {scene.seed}")
    kind = scene.texts[0].kind if scene.texts else "none"
    found = [
        Item("caption", "", "caption en", caption(scene)),
        Item("ocr", kind, "ocr", scene.text),
        *_counts(scene, rng),
        *_colors(scene, rng),
        *_shapes(scene, rng),
        *_existence(scene, rng),
    ]
    found += [detection(scene, labels) for labels in _labels(scene, rng)]
    labels = dict.fromkeys(label for pair in _labels(scene, random.Random(f"masks {scene.seed}")) for label in pair)
    found += [segmentation(scene, label) for label in list(labels)[:2]]
    return found


def caption(scene: Scene) -> str:
    """Caption: shapes grouped by colour and kind in alphabetical order, then "some text" if there is any."""
    groups = Counter((shape.kind, shape.color) for shape in scene.shapes)
    parts = [
        f"{_article(color) if n == 1 else NUMBERS[n]} {color} {kind}{'s' if n > 1 else ''}"
        for (kind, color), n in sorted(groups.items())
    ]
    if scene.texts:
        parts.append("some text")
    if not parts:
        return "an empty scene"
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def detection(scene: Scene, labels: tuple[str, ...]) -> Item:
    """A `detect a ; b` prompt. A label is a shape (`circle`) or a coloured one (`red circle`). Boxes left to right."""
    boxes = tuple((label, shape.box) for shape in scene.shapes for label in labels if shape.called(label))
    answer = " ; ".join(f"{locations(box, scene.width, scene.height)} {label}" for label, box in boxes)
    return Item("detect", "present" if boxes else "absent", f"detect {' ; '.join(labels)}", answer, boxes)


def segmentation(scene: Scene, label: str) -> Item:
    """A `segment a` prompt. A label is one of `detection`. Masks left to right."""
    shapes = [shape for shape in scene.shapes if shape.called(label)]
    answer = " ; ".join(
        f"{locations(shape.box, scene.width, scene.height)}<mask {shape.kind} {prototype(shape)[1]}> {label}"
        for shape in shapes
    )
    boxes = tuple((label, shape.box) for shape in shapes)
    return Item("segment", "present" if boxes else "absent", f"segment {label}", answer, boxes)


def locations(box: Box, width: int, height: int) -> str:
    """A box in pixels as `<locY1><locX1><locY2><locX2>`, bins 0..1023 of the image's height and width."""
    x_min, y_min, x_max, y_max = box
    edges = (y_min / height, x_min / width, y_max / height, x_max / width)
    return "".join(f"<loc{min(1023, max(0, round(edge * 1023))):04d}>" for edge in edges)


def _counts(scene: Scene, rng: random.Random) -> list[Item]:
    kind = rng.choice([shape.kind for shape in scene.shapes] if scene.shapes and rng.random() < 0.75 else SHAPES)
    color = rng.choice(
        [shape.color for shape in scene.shapes] if scene.shapes and rng.random() < 0.75 else list(COLORS)
    )
    of_kind = sum(shape.kind == kind for shape in scene.shapes)
    of_color = sum(shape.color == color for shape in scene.shapes)
    return [
        _answer("count", f"how many {kind}s are there?", str(of_kind)),
        _answer("count", f"how many {color} shapes are there?", str(of_color)),
        _answer("count", "how many shapes are there?", str(len(scene.shapes))),
    ]


def _colors(scene: Scene, rng: random.Random) -> list[Item]:
    """A question for the colour of a shape whose kind is unique in the scene; empty if there is none."""
    kinds = Counter(shape.kind for shape in scene.shapes)
    single = [shape for shape in scene.shapes if kinds[shape.kind] == 1]
    if not single:
        return []
    shape = rng.choice(single)
    word = rng.choice(("color", "color", "colour"))
    return [_answer("color", f"what {word} is the {shape.kind}?", shape.color)]


def _shapes(scene: Scene, rng: random.Random) -> list[Item]:
    """A question for the kind of a shape whose colour is unique in the scene; empty if there is none."""
    colors = Counter(shape.color for shape in scene.shapes)
    single = [shape for shape in scene.shapes if colors[shape.color] == 1]
    if not single:
        return []
    shape = rng.choice(single)
    question = rng.choice(("what shape is {}?", "which shape is {}?")).format(shape.color)
    return [_answer("shape", question, shape.kind)]


def _existence(scene: Scene, rng: random.Random) -> list[Item]:
    pairs: set[tuple[str, str]] = {(shape.color, shape.kind) for shape in scene.shapes}
    pair = rng.choice(sorted(pairs)) if pairs and rng.random() < 0.5 else _near_miss(scene, rng)
    other = rng.choice(SHAPES)
    color, kind = pair
    verdict = "yes" if pair in pairs else "no"
    kinds = {shape.kind for shape in scene.shapes}
    return [
        _answer("exists", f"is there {_article(color)} {color} {kind}?", verdict),
        _answer("exists", f"is there a {other}?", "yes" if other in kinds else "no"),
    ]


def _labels(scene: Scene, rng: random.Random) -> list[tuple[str, ...]]:
    """Two detection prompts: one of a single label, one of two coloured labels."""
    pairs = sorted({(shape.color, shape.kind) for shape in scene.shapes})

    def pick() -> str:
        color, kind = rng.choice(pairs) if pairs and rng.random() < 0.75 else _near_miss(scene, rng)
        return f"{color} {kind}"

    first = pick()
    single = first.split()[1] if rng.random() < 0.4 else first
    second, third = pick(), pick()
    return [(single,), (second, third) if second != third else (second,)]


def _near_miss(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A random coloured shape; often it shares its colour or its kind with a shape of the scene."""
    color, kind = rng.choice(list(COLORS)), rng.choice(SHAPES)
    if scene.shapes and rng.random() < 0.6:
        model = rng.choice(scene.shapes)
        return (model.color, kind) if rng.random() < 0.5 else (color, model.kind)
    return color, kind


def _answer(kind: str, question: str, answer: str) -> Item:
    return Item("answer", kind, f"answer en {question}", answer)


def _article(color: str) -> str:
    return "an" if color == "orange" else "a"
