"""`paliscribe.ask`: the same answer for a picture however it is given, and a line for what is none."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import paliscribe
from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS

SCENE = sample_scene(TEST_SEEDS + 11)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return draw(SCENE)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_has_one_answer_however_it_is_given(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(png(picture))
    item = next(item for item in scene_items(SCENE) if item.task == "detect" and item.boxes)
    given: list[Any] = [path, str(path), path.read_bytes(), picture, np.asarray(picture), bytearray(path.read_bytes())]
    records = [paliscribe.ask(image, item.prompt) for image in given]
    assert len({(record.text, record.boxes, record.score) for record in records}) == 1
    assert records[0].status == "ok" and records[0].boxes[0].x_max <= SCENE.width == records[0].width


def test_a_rotated_pil_image_is_upright_as_its_file_would_be(picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert paliscribe.ask(opened, "caption en") == paliscribe.ask(opened, "caption en")
        record = paliscribe.ask(opened, "caption en")
    assert (record.width, record.height) == (SCENE.width, SCENE.height)
    assert record.text == paliscribe.ask(picture, "caption en").text


def test_grey_and_wide_modes_are_taken(picture: Image.Image) -> None:
    grey = picture.convert("L")
    texts = {paliscribe.ask(image, "ocr").text for image in (grey, np.asarray(grey), np.asarray(grey)[..., None])}
    assert len(texts) == 1
    for mode in ("RGBA", "P", "CMYK", "F", "YCbCr"):
        assert paliscribe.ask(picture.convert(mode) if mode != "F" else grey.convert("F"), "ocr").status == "ok"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (3, "a path, bytes, a PIL image or an array, not int"),
        (np.zeros((4, 4, 7), np.uint8), r"a uint8 array \[height, width, 3\], not uint8 \[4, 4, 7\]"),
        (np.zeros((4, 4, 3)), "not float64"),
        (np.zeros((0, 4, 3), np.uint8), "image"),
        (b"not an image", "no image format is recognised"),
        ("no-such-file.jpg", "no-such-file.jpg: no such file"),
        ("gs://bucket/x.jpg", "unknown scheme 'gs'"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(image: Any, words: str) -> None:
    with pytest.raises(paliscribe.UsageError, match=words) as error:
        paliscribe.ask(image, "ocr")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, "empty task"),
        ("ocr", {"max_tokens": 0}, "max_tokens"),
        ("answer en {question}", {}, "question"),
        ("ocr", {"model": {"id": "demo", "precison": "float32"}}, "precison"),
        ("ocr", {"model": "no/such folder"}, "no/such folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(
    picture: Image.Image, prompt: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(paliscribe.UsageError, match=words) as error:
        paliscribe.ask(picture, prompt, **options)
    assert "\n" not in str(error.value)
