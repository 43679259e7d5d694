from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from paliscribe.demo.digits import digits
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_page, sample_scene
from paliscribe.demo.scenes import DEV_SEEDS, TEST_SEEDS, Background, Scene, split_of

SEEDS = [*range(40), *range(TEST_SEEDS, TEST_SEEDS + 40)]
GREY = Background(1, 1, bytes((128, 128, 128)), True, False)


def ink_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Bounding box of the pixels that are not background."""
    pixels: NDArray[np.int_] = np.asarray(image).astype(int)
    different = (pixels != 128).any(axis=2)
    rows, columns = np.flatnonzero(different.any(axis=1)), np.flatnonzero(different.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def written(texts: int = 40) -> list[Scene]:
    found = (sample_scene(seed) for seed in range(TEST_SEEDS, TEST_SEEDS + 10 * texts))
    return [scene for scene in found if scene.texts][:texts]


@pytest.mark.parametrize("sample", [sample_scene, sample_page])
def test_scenes_and_images_are_deterministic_for_their_seed(sample: Callable[[int], Scene]) -> None:
    for seed in SEEDS[:10]:
        assert sample(seed) == sample(seed)
        assert draw(sample(seed)).tobytes() == draw(sample(seed)).tobytes()
    assert len({sample(seed) for seed in SEEDS}) == len(SEEDS)


def test_images_are_rgb_of_various_sizes() -> None:
    images = [draw(sample_scene(seed)) for seed in SEEDS]
    assert {image.mode for image in images} == {"RGB"}
    assert all(160 <= side <= 480 for image in images for side in image.size)
    ratios = [image.width / image.height for image in images]
    assert min(ratios) < 0.8 and max(ratios) > 1.25


def test_a_shape_fills_its_box() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        for shape in scene.shapes:
            alone = replace(scene, background=GREY, shapes=(shape,), texts=())
            assert np.abs(np.array(ink_box(draw(alone))) - shape.box).max() <= 1.5


def test_a_shape_has_its_colour() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        for shape in scene.shapes:
            middle = (int(shape.box[0] + shape.box[2]) // 2, int(shape.box[1] + shape.box[3]) // 2)
            assert draw(scene).getpixel(middle) == shape.paint


def test_shapes_and_text_do_not_overlap_and_are_inside_the_canvas() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        boxes = [shape.box for shape in scene.shapes] + [glyph.box for text in scene.texts for glyph in text.glyphs]
        for x_min, y_min, x_max, y_max in boxes:
            assert 0 <= x_min < x_max <= scene.width + 1 and 0 <= y_min < y_max <= scene.height + 1
        for i, one in enumerate(shape.box for shape in scene.shapes):
            for other in boxes[:i]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_a_character_stays_in_its_box() -> None:
    for scene in written():
        text = scene.texts[0]
        for glyph in text.glyphs:
            alone = replace(scene, background=GREY, shapes=(), texts=(replace(text, glyphs=(glyph,)),))
            ink = np.array(ink_box(draw(alone)))
            # Digit images have empty margins, and printed characters are as wide as their advance.
            assert (ink[:2] >= np.floor(glyph.box[:2]) - 1).all() and (ink[2:] <= np.ceil(glyph.box[2:]) + 1).all()
            if text.kind != "handwriting":
                assert np.abs(ink - glyph.box)[[1, 3]].max() <= 2.5


def test_the_seed_determines_the_split() -> None:
    assert [split_of(seed) for seed in (0, DEV_SEEDS, TEST_SEEDS)] == ["train", "dev", "test"]


def test_held_out_digits_are_the_last_of_load_digits() -> None:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = digits("test")
    assert (images == bunch.images[1500:]).all() and (labels == bunch.target[1500:]).all()
    assert len(digits("train")[1]) + len(digits("dev")[1]) == 1500


def test_handwriting_uses_images_of_its_digits() -> None:
    for scene in written():
        for glyph in scene.texts[0].glyphs:
            if glyph.digit is not None:
                assert str(digits("test")[1][glyph.digit]) == glyph.char
