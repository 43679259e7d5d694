"""Pictures of every mode are annotated, and boxes come back in pixels of the upright original."""

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from front.conftest import Paliscribe, task_flags
from PIL import Image

from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.scenes import TEST_SEEDS
from paliscribe.demo.score import overlap

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("served")]
SCENE = sample_scene(TEST_SEEDS + 901_016)  # held out, wider than high, with one large circle
GREY = {
    "grey.png",
    "grey-alpha.png",
    "sixteen-bit.png",
}  # the demo model, which knows colours only, sees no circle there
UPRIGHT = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def variants(image: Image.Image, folder: Path) -> None:
    """The same picture in many modes and formats."""
    image.save(folder / "plain.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("L").convert("RGB").save(folder / "grey-as-rgb.png")
    image.convert("LA").save(folder / "grey-alpha.png")
    image.convert("RGBA").save(folder / "rgba.png")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    grey = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(grey).save(folder / "sixteen-bit.png")
    image.save(folder / "webp.webp", quality=95)
    image.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", image.size)], duration=100)
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = image if turn is None else image.transpose(turn)
        turned.save(folder / f"exif-{orientation}.jpg", exif=exif, quality=95)


def test_every_mode(tmp_path: Path, paliscribe: Paliscribe) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    variants(draw(SCENE), folder)
    said = paliscribe(
        "annotate", "--manifest", folder, "--output", tmp_path / "o", *task_flags("detect circle"), "--quiet", "--json"
    )
    assert said.code == 0, said.err
    rows = {row["id"]: row for row in ds.dataset(tmp_path / "o", format="parquet").to_table().to_pylist()}
    assert len(rows) == 14
    assert {row["status"] for row in rows.values()} == {"ok"}
    truth = next(box for item in scene_items(SCENE) if item.prompt == "detect circle" for _, box in item.boxes)
    grey = rows["grey-as-rgb.png"]
    for name, row in rows.items():
        assert (row["width"], row["height"]) == (SCENE.width, SCENE.height), name
        if name in GREY or row is grey:
            assert (row["text"], row["score"]) == (grey["text"], grey["score"]), name
            continue
        found = [(box["x_min"], box["y_min"], box["x_max"], box["y_max"]) for box in row["boxes"]]
        assert found, f"{name}: nothing found"
        assert overlap(truth, found[0]) > 0.5, name
