"""Writes a small collection of held-out scenes: images, a manifest, and ground truth for scoring."""

import json
from pathlib import Path
from typing import Any

from paliscribe.demo.answers import Item, scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS, Scene

COLLECTIONS = 4000
"""Number of valid seeds of a collection."""
MOST_SCENES = 100_000
"""Number of scenes per collection seed."""


def write_collection(folder: Path, n: int, seed: int) -> Path:
    """Write `n` scenes into `folder`; returns the path of the manifest.

    `images/` contains alternating JPEG and PNG files. `manifest.jsonl` has id, image (relative to the manifest),
    question (for `answer en {question}`) and objects (for `detect {objects}`). `truth.jsonl` has id, caption, answer,
    ocr, and detect (a list of label, x_min, y_min, x_max, y_max in pixels of the image). Raises ValueError for `n` or
    `seed` out of range.
    """
    if not 0 <= seed < COLLECTIONS or not 0 <= n <= MOST_SCENES:
        raise ValueError(f"seed must be below {COLLECTIONS} and n at most {MOST_SCENES}, not {seed} and {n}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    manifest: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    for i in range(n):
        scene = sample_scene(TEST_SEEDS + seed * MOST_SCENES + i)
        row_id = f"scene-{i:05d}"
        image = _write_image(scene, folder / "images" / row_id, png=i % 2 == 1)
        question, objects = _question_and_detection(scene, i)
        manifest.append(
            {
                "id": row_id,
                "image": image.relative_to(folder).as_posix(),
                "question": question.prompt.removeprefix("answer en "),
                "objects": objects.prompt.removeprefix("detect "),
            }
        )
        truth.append(_truth(row_id, scene, question, objects))
    _write_lines(folder / "truth.jsonl", truth)
    return _write_lines(folder / "manifest.jsonl", manifest)


def _question_and_detection(scene: Scene, turn: int) -> tuple[Item, Item]:
    """One question and one detection about the scene, selected by `turn` so that consecutive scenes differ."""
    items = scene_items(scene)
    questions = [item for item in items if item.task == "answer"]
    detections = [item for item in items if item.task == "detect"]
    return questions[turn % len(questions)], detections[turn % len(detections)]


def _truth(row_id: str, scene: Scene, question: Item, objects: Item) -> dict[str, Any]:
    caption, ocr = (
        next(item.answer for item in scene_items(scene) if item.task == task) for task in ("caption", "ocr")
    )
    boxes = [
        {
            "label": label,
            **dict(zip(("x_min", "y_min", "x_max", "y_max"), (round(edge, 2) for edge in box), strict=True)),
        }
        for label, box in objects.boxes
    ]
    return {"id": row_id, "caption": caption, "answer": question.answer, "ocr": ocr, "detect": boxes}


def _write_image(scene: Scene, stem: Path, png: bool) -> Path:
    path = stem.with_suffix(".png" if png else ".jpg")
    if png:
        draw(scene).save(path)
    else:
        draw(scene).save(path, quality=95)
    return path


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
