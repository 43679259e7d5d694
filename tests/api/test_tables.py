"""A manifest given as a table or as rows is written into the output, and read as any other."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from paliscribe import manifest
from paliscribe.api.tables import manifest_addresses
from paliscribe.errors import UsageError
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest import read

ROWS: list[dict[str, Any]] = [
    {"image": "a.jpg", "id": "one", "question": "what?", "weight": 1.5},
    {"image": "s3://bucket/b.jpg", "id": "two", "question": "wer?", "weight": 2.0},
    {"image": "/data/c.jpg", "id": "three", "question": None, "weight": None},
]


def plain(rows: list[dict[str, Any]]) -> Any:
    return rows


def lazily(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return iter(rows)


def paths(rows: list[dict[str, Any]]) -> Any:
    return [row | {"image": Path(row["image"])} if "://" not in row["image"] else row for row in rows]


def indexed(rows: list[dict[str, Any]]) -> Any:
    return pd.DataFrame(rows, index=[7, 8, 9])


def category(rows: list[dict[str, Any]]) -> Any:
    return pd.DataFrame(rows).astype({"image": "category"})


@pytest.mark.parametrize(
    "made", [plain, lazily, paths, pa.Table.from_pylist, pd.DataFrame, indexed, category, pl.DataFrame]
)
def test_every_kind_of_table_gives_the_same_rows(
    made: Callable[[list[dict[str, Any]]], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [address] = manifest_addresses(made(ROWS), "out", "image")
    assert Path(address).is_relative_to(tmp_path / "out/_run/given")
    read = list(manifest.read(address))
    assert [row.id for row in read] == ["one", "two", "three"]
    assert [row.image for row in read] == [str(tmp_path / "a.jpg"), "s3://bucket/b.jpg", "/data/c.jpg"]
    assert read[0].columns == {"question": "what?", "weight": 1.5}
    weight = read[2].columns.get("weight")
    assert weight is None or weight != weight, "pandas has no other way to leave a number out"


def test_equal_tables_have_one_address_and_others_another(tmp_path: Path) -> None:
    first = manifest_addresses(ROWS, str(tmp_path), "image")
    assert manifest_addresses(iter(ROWS), str(tmp_path), "image") == first
    assert manifest_addresses(ROWS[:2], str(tmp_path), "image") != first
    assert len(list((tmp_path / "_run/given").iterdir())) == 2


def test_a_path_stays_as_it_is(tmp_path: Path) -> None:
    for address in ("photos/", "s3://bucket/m.jsonl"):
        assert manifest_addresses(address, str(tmp_path), "image") == (address,)
    assert manifest_addresses(Path("photos"), str(tmp_path), "image") == ("photos",)
    several: list[str | Path] = ["s3://b/a.jsonl", Path("b.csv")]
    assert manifest_addresses(several, str(tmp_path), "image") == ("s3://b/a.jsonl", "b.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "not int"),
        (b"bytes", "not bytes"),
        ({"image": "a.jpg"}, "not dict"),
        ([3], "row 1 is a int, not a dict"),
        ([{"image": "a.jpg", "x": {1, 2}}], "row 1: .*set"),
    ],
)
def test_anything_else_is_refused(given: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        manifest_addresses(given, str(tmp_path), "image")
    assert not list(tmp_path.iterdir())


def test_images_themselves(tmp_path: Path) -> None:
    made = [
        Image.new(mode, (9, 9), color)
        for mode, color in (("RGB", "red"), ("RGBA", "blue"), ("CMYK", "green"), ("L", 7))
    ]
    bodies = []
    for image in made:
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
        bodies.append(file.getvalue())
    struct = [{"bytes": body, "path": None} for body in bodies]
    given: list[Any] = [
        pd.DataFrame({"image": made, "n": range(4)}),
        pl.DataFrame({"image": pl.Series("image", made, dtype=pl.Object), "n": range(4)}),
        pd.DataFrame({"image": bodies, "n": range(4)}),
        pl.DataFrame({"image": bodies, "n": range(4)}),
        pl.DataFrame({"image": struct, "n": range(4)}),
        pa.table({"image": struct, "n": range(4)}),
        [{"image": image, "n": n} for n, image in enumerate(made)],
        [{"image": image, "n": n} for n, image in enumerate(bodies)],
        [{"image": image, "n": n} for n, image in enumerate(struct)],
    ]
    for number, images in enumerate(given):
        [address] = manifest_addresses(images, str(tmp_path / str(number)), "image")
        rows = list(read(address))
        assert [row.columns["n"] for row in rows] == list(range(4))
        for row, image in zip(rows, made, strict=True):
            found = Image.open(io.BytesIO(Fetcher().fetch(str(row.image)))).convert("RGB")
            assert found.tobytes() == image.convert("RGB").tobytes(), number
    with pytest.raises(UsageError, match="cannot take"):
        manifest_addresses(pd.DataFrame({"image": ["a"], "x": [object()]}), str(tmp_path), "image")
