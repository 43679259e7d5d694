import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paliscribe.demo.collection import write_collection


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_collection_has_images_a_manifest_and_ground_truth(tmp_path: Path) -> None:
    manifest = write_collection(tmp_path, 12, seed=3)
    rows, truth = lines(manifest), lines(tmp_path / "truth.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in truth]
    assert len({row["id"] for row in rows}) == 12
    formats = set()
    for row, wanted in zip(rows, truth, strict=True):
        assert set(row) == {"id", "image", "question", "objects"}
        assert set(wanted) == {"id", "caption", "answer", "ocr", "detect"}
        with Image.open(manifest.parent / row["image"]) as image:
            formats.add(image.format)
            for box in wanted["detect"]:
                assert box["label"] in row["objects"]
                assert 0 <= box["x_min"] < box["x_max"] <= image.width
                assert 0 <= box["y_min"] < box["y_max"] <= image.height
    assert formats == {"JPEG", "PNG"}


def test_a_collection_is_deterministic_for_its_seed(tmp_path: Path) -> None:
    first, again, other = (write_collection(tmp_path / name, 4, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first.read_text() == again.read_text() != other.read_text()
    image = lines(first)[0]["image"]
    assert (first.parent / image).read_bytes() == (again.parent / image).read_bytes()


def test_seeds_out_of_range_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed must be below"):
        write_collection(tmp_path, 1, seed=-1)


def test_writing_a_collection_imports_neither_torch_nor_scikit_learn(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, paliscribe.demo.collection as c; c.write_collection(pathlib.Path(sys.argv[1]), 8, 0); "
        "print([name for name in ('torch', 'ray', 'sklearn', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
