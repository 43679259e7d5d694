"""Masks of shapes, and the prototypes that their codes stand for."""

import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.masks import TILTS, drawn, in_box, masks, prototype, prototype_mask, prototypes
from paliscribe.demo.sampling import corners, sample_scene
from paliscribe.demo.scenes import SHAPES, TEST_SEEDS, Shape
from paliscribe.demo.training.mask_codes import WIDTH, build_decoder, clusters, crops, save_decoder
from paliscribe.grammar.masks import CODEBOOK, MaskDecoder

SCENES = [sample_scene(seed) for seed in range(TEST_SEEDS, TEST_SEEDS + 60)]


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "circle"])
def test_a_shapes_prototype_has_the_nearest_tilt(kind: str) -> None:
    for degrees, nearest in ((-11.9, -12), (-4.4, -3), (0.0, 0), (1.6, 3), (7.4, 6)):
        outline = tuple((x + 100, y + 80) for x, y in corners(kind, 30, math.radians(degrees)))  # type: ignore[arg-type]
        assert prototype(Shape(kind, "red", (0, 0, 0), outline, (0, 0, 0, 0))) == (kind, nearest)  # type: ignore[arg-type]


def test_a_shapes_mask_in_its_box_is_like_its_prototype() -> None:
    assert len(list(prototypes())) == 1 + 3 * len(TILTS)
    known = {each: prototype_mask(each) for each in prototypes()}
    assert all(mask.shape == (64, 64) and mask.min() >= 0 and mask.max() == 1 for mask in known.values())
    found = [
        iou(in_box(drawn(shape, scene.width, scene.height), shape) > 0.5, known[prototype(shape)] > 0.5)
        for scene in SCENES
        for shape in scene.shapes
    ]
    assert min(found) > 0.85 and np.mean(found) > 0.95


def test_masks_are_the_pixels_of_the_image() -> None:
    for scene in SCENES[:20]:
        for shape in scene.shapes:
            pixels = np.asarray(draw(replace(scene, shapes=(shape,), texts=())))
            inside = drawn(shape, scene.width, scene.height)
            assert (pixels[inside] == shape.paint).all()


def test_answers_to_segment_name_boxes_and_prototypes_of_all_shapes_meant() -> None:
    kinds = set()
    for scene in SCENES:
        for item in scene_items(scene):
            if item.task == "segment":
                label = item.prompt.removeprefix("segment ")
                named = re.findall(r"<mask (\w+) (-?\d+)> ([^;]+)", item.answer)
                shapes = [shape for shape in scene.shapes if shape.called(label)]
                assert [(kind, int(tilt)) for kind, tilt, _ in named] == [prototype(shape) for shape in shapes]
                assert {said.strip() for _, _, said in named} <= {label}
                assert [box for _, box in item.boxes] == [shape.box for shape in shapes]
                assert len(masks(scene, label)) == len(shapes)
                kinds.add(item.kind)
    assert kinds == {"present", "absent"}


@torch.inference_mode()
def test_the_trained_decoder_is_read_as_the_authors_is() -> None:
    """In half precision, which is stored, and without the encoder."""
    torch.manual_seed(1)
    decoder, codebook, file = build_decoder(), torch.randn(128, WIDTH), io.BytesIO()
    save_decoder(decoder, codebook, file)
    codes = np.random.default_rng(1).integers(0, 128, (3, 16))
    grid = codebook[torch.from_numpy(codes)].reshape(3, 4, 4, WIDTH).permute(0, 3, 1, 2)
    found = MaskDecoder.from_npz(file.getvalue()).decode(codes)
    np.testing.assert_allclose(found, decoder(grid)[:, 0].numpy(), atol=1e-3)
    with np.load(io.BytesIO(file.getvalue())) as stored:
        assert CODEBOOK in stored.files and {stored[name].dtype for name in stored.files} == {np.dtype("float16")}


def test_crops_are_masks_of_shapes() -> None:
    found = crops(10)
    assert found.shape == (10, 64, 64) and found.min() == -1 and found.max() == 1


def test_a_codebooks_vectors_are_centres_of_clusters() -> None:
    torch.manual_seed(2)
    centres = torch.randn(128, 4) * 100
    vectors = (centres[:, None] + torch.randn(128, 6, 4) * 0.01).flatten(0, 1)
    found = clusters(vectors)
    assert torch.cdist(centres, found).min(1).values.max() < 0.1
