"""Pools of rendered training scenes: arrays on disk, rendered once by two processes and memory-mapped."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_page, sample_scene
from paliscribe.demo.scenes import COLORS, DIGITS, LETTERS, SHAPES, Scene

SIDE = 112  # pixels a side of the model's input
GRID = 8  # patches a side, 14 pixels each
PATCHES = GRID * GRID
CHARACTERS = DIGITS + LETTERS
CHUNK = 1000  # scenes rendered by one call of a worker


@dataclass(frozen=True, slots=True)
class Pool:
    """Images with labels for each patch. Label 0: nothing there."""

    images: NDArray[np.uint8]  # [n, 112, 112, 3]
    labels: NDArray[np.uint8]  # [n, 64, 5]: shape, colour, is a centre, first character, second character
    boxes: NDArray[np.float16]  # [n, 64, 4]: x_min, y_min, x_max, y_max of the shape on the patch, 0..1
    items: list[list[tuple[str, str, str]]]  # a scene's (task, prompt, answer); empty for pages

    def __len__(self) -> int:
        return len(self.images)


def load_or_render(folder: Path, kind: str, first_seed: int, size: int) -> Pool:
    """A pool of `size` scenes (kind "scenes") or pages (kind "pages") from `first_seed` on; rendered if absent."""
    if not (folder / "items.json").exists():
        _render_pool(folder, kind, first_seed, size)
    return Pool(
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "labels.npy", mmap_mode="r"),
        np.load(folder / "boxes.npy", mmap_mode="r"),
        json.loads((folder / "items.json").read_text()),
    )


def resize(image: Image.Image) -> Image.Image:
    """Resize an image as the processor does."""
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def patch_targets(scene: Scene) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Labels [64, 5] and boxes [64, 4] of one scene, as in `Pool`."""
    labels = np.zeros((GRID, GRID, 5), np.uint8)
    boxes = np.zeros((GRID, GRID, 4), np.float16)
    middles = (np.arange(GRID) + 0.5) / GRID
    colors = list(COLORS)
    for shape in scene.shapes:
        x_min, y_min, x_max, y_max = np.array(shape.box) / (scene.width, scene.height, scene.width, scene.height)
        inside = np.outer((middles > y_min) & (middles < y_max), (middles > x_min) & (middles < x_max))
        labels[inside, 0] = 1 + SHAPES.index(shape.kind)
        labels[inside, 1] = 1 + colors.index(shape.color)
        boxes[inside] = (x_min, y_min, x_max, y_max)
        labels[_cell((y_min + y_max) / 2), _cell((x_min + x_max) / 2), 2] = 1
    for text in scene.texts:
        for glyph in text.glyphs:
            row = _cell((glyph.box[1] + glyph.box[3]) / 2 / scene.height)
            column = _cell((glyph.box[0] + glyph.box[2]) / 2 / scene.width)
            slot = 3 if labels[row, column, 3] == 0 else 4  # at most two characters per patch
            if labels[row, column, slot] == 0:
                labels[row, column, slot] = 1 + CHARACTERS.index(glyph.char)
    return labels.reshape(PATCHES, 5), boxes.reshape(PATCHES, 4)


def _cell(position: float) -> int:
    return min(GRID - 1, max(0, int(position * GRID)))


def _render_pool(folder: Path, kind: str, first_seed: int, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "images": np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (size, SIDE, SIDE, 3)),
        "labels": np.lib.format.open_memmap(folder / "labels.npy", "w+", np.uint8, (size, PATCHES, 5)),
        "boxes": np.lib.format.open_memmap(folder / "boxes.npy", "w+", np.float16, (size, PATCHES, 4)),
    }
    starts = range(0, size, CHUNK)
    items: list[Any] = []
    with ProcessPoolExecutor(2) as workers:
        calls = [workers.submit(_render, kind, first_seed + i, min(CHUNK, size - i)) for i in starts]
        for start, call in zip(starts, calls, strict=True):
            images, labels, boxes, found = call.result()
            stop = start + len(images)
            arrays["images"][start:stop] = images
            arrays["labels"][start:stop] = labels
            arrays["boxes"][start:stop] = boxes
            items += found
    for array in arrays.values():
        array.flush()
    (folder / "items.json").write_text(json.dumps(items))  # written last: marks the pool as complete


def _render(
    kind: str, first_seed: int, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16], list[list[tuple[str, str, str]]]]:
    images = np.empty((size, SIDE, SIDE, 3), np.uint8)
    labels = np.empty((size, PATCHES, 5), np.uint8)
    boxes = np.empty((size, PATCHES, 4), np.float16)
    items: list[list[tuple[str, str, str]]] = []
    for i in range(size):
        scene = sample_page(first_seed + i) if kind == "pages" else sample_scene(first_seed + i)
        images[i] = np.asarray(resize(draw(scene)))
        labels[i], boxes[i] = patch_targets(scene)
        found = scene_items(scene) if kind == "scenes" else []
        items.append([(item.task, item.prompt, item.answer) for item in found])
    return images, labels, boxes, items
