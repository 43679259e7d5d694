"""Values of Parquet and JSON manifests for which there is no plain type, and images that are no text."""

import base64
import csv
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe.errors import UsageError
from paliscribe.manifest import formats, freeze, read, scan
from paliscribe.manifest.naming import Naming
from paliscribe.storage import open_store

PICTURE = {"bytes": b"\x89PNG\r\n", "path": "one.png"}


def refusal(source: str, **columns: Any) -> str:
    with pytest.raises(UsageError) as caught:
        scan(source, **columns)
    assert "\n" not in str(caught.value) and len(str(caught.value)) - len(source) < 400
    return str(caught.value)


def parquet(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    return str(folder / "m.parquet")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([{"data": b"\x89PNG"}], "column 'image' is struct<data: binary>; it must be text"),
        ([PICTURE | {"path": 1}], "column 'image' is struct<bytes: binary, path: int64>"),
        ([PICTURE | {"bytes": "text"}], "column 'image' is struct<bytes: string, path: string>"),
        (pa.array([b"\x89PNG"], pa.binary(4)), "column 'image' is fixed_size_binary[4]"),
        ([["a.png"]], "column 'image' is list<element: string>"),
        ([[PICTURE]], "column 'image' is list<element: struct<"),
    ],
)
def test_other_types_of_images_inside_a_parquet_manifest_are_refused(image: Any, words: str, tmp_path: Path) -> None:
    source = parquet(tmp_path, id=["one"], image=image, file=["one.png"])
    assert words in refusal(source) and "--image-column" in refusal(source)
    [row] = read(source, image_column="file", drop_columns=["image"])
    assert row.image == f"{tmp_path}/one.png" and row.columns == {}


@pytest.mark.parametrize("value", [{"url": "a.png"}, ["a.png"], [], {}, [{"type": "image_url"}]])
@pytest.mark.parametrize("column", ["image", "id"])
def test_images_and_ids_that_are_no_text_are_refused(value: Any, column: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": "a", "image": "a.png"}, {"id": "b", "image": "b.png"} | {column: value}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = "a list" if isinstance(value, list) else "an object"
    assert f"column '{column}' is {kind} in row 2; it must be text" in refusal(str(tmp_path / "m.jsonl"))


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(60)
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(60)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (base64.b64encode(PNG).decode(), "base64 without its head"),
        (base64.b64encode(JPEG).decode(), "base64 without its head"),
        (base64.urlsafe_b64encode(b"RIFF\xff\xff\xff\xffWEBP" + bytes(60)).decode(), "base64 without its head"),
        (base64.b64encode(b"\0\0\0\x1cftypavif" + bytes(60)).decode(), "base64 without its head"),
        (str(base64.b64encode(PNG)), "base64 without its head"),
        (str(PNG), "a printed list or object, or printed bytes"),
        (str({"bytes": PNG, "path": "one.png"}), "a printed list or object, or printed bytes"),
        (str([{"bytes": PNG}]), "a printed list or object, or printed bytes"),
        (json.dumps({"url": "a.png"}), "a printed list or object, or printed bytes"),
        ("['a.png', 'b.png']", "a printed list or object, or printed bytes"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_pictures_that_were_written_as_text_are_refused(value: str, words: str, given: bool, tmp_path: Path) -> None:
    """In every format that has text: neither `image` nor `id` gets them."""
    ids = [{"id": "a"}, {"id": "b"}] if given else [{}, {}]
    rows = [ids[0] | {"image": "a.png"}, ids[1] | {"image": value}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.csv", "m.parquet"):
        message = refusal(str(tmp_path / name))
        assert f"column 'image' is {words}" in message and "in row 2; it must be an address or a data URL" in message


@pytest.mark.parametrize("name", ["9j/4AAQ.jpg", "iVBORw0KGgo.png", "{a}.png", "[1] b.png", "b'x.png", "R0lGOD/a.gif"])
def test_odd_names_are_addresses(name: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": name}) + "\n")
    assert [(row.id, row.image) for row in read(str(tmp_path / "m.jsonl"))] == [(name, f"{tmp_path}/{name}")]


@pytest.mark.parametrize("value", [b"\x00", PICTURE, [PICTURE], {"inner": [b"\xff"]}])
def test_bytes_are_not_carried(value: Any, tmp_path: Path) -> None:
    source = parquet(tmp_path, image=["a.png"], thumb=[value], n=[1])
    message = refusal(source)
    assert "column 'thumb' is " in message and "binary" in message and "--drop-column thumb" in message
    assert [row.columns for row in read(source, drop_columns=["thumb"])] == [{"n": 1}]


def test_dropped_columns_are_not_read(tmp_path: Path) -> None:
    source = parquet(tmp_path, image=["a.png"], thumb=[PICTURE])
    [(_, block)] = formats.blocks(source, Naming(dropped=frozenset({"thumb"})))
    assert block.table().column_names == ["image"]


def test_values_that_python_has_no_type_for(tmp_path: Path) -> None:
    far = pa.array([10**15, 0], pa.int64())
    source = parquet(
        tmp_path,
        image=["a.png", "b.png"],
        day=pa.array([10**7, 0], pa.int32()).cast(pa.date32()),
        moment=far.cast(pa.timestamp("s")),
        there=far.cast(pa.timestamp("s", "Europe/Berlin")),
        nanos=pa.array([1234567890123456789, 0]).cast(pa.timestamp("ns")),
        inside=pa.array([[10**15], [0]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("s"))),
        deep=pa.array([{"t": 10**15}, None], pa.struct([("t", pa.int64())])).cast(
            pa.struct([("t", pa.timestamp("s"))])
        ),
        large=pa.array([2**64 - 1, 1], pa.uint64()),
        lasting=pa.array([90, None]).cast(pa.duration("s")),
    )
    first, second = (row.columns for row in read(source))
    assert first == {
        "day": "29349-01-26",
        "moment": "31690708-07-05T01:46:40.000",
        "there": "31690708-07-05T01:46:40.000+00:00",
        "nanos": "2009-02-13T23:31:30.123456789",
        "inside": '["31690708-07-05T01:46:40.000"]',
        "deep": '{"t": "31690708-07-05T01:46:40.000"}',
        "large": "18446744073709551615",
        "lasting": "0:01:30",
    }
    assert second["day"] == "1970-01-01" and second["large"] == "1" and second["moment"] == "1970-01-01T00:00:00"


def test_text_that_is_none_is_carried_escaped(tmp_path: Path) -> None:
    offsets = pa.py_buffer(struct.pack("<3i", 0, 4, 5))
    odd = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"caf\xe9b"))
    assert [row.columns["s"] for row in read(parquet(tmp_path, image=["a", "b"], s=odd))] == ["caf\\xe9", "b"]
    assert [row.id for row in read(parquet(tmp_path, image=odd))] == ["caf\\xe9", "b"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_of_lists_are_known_as_such(kind: str, tmp_path: Path) -> None:
    rows = [{"image": "a", "things": ["cat", "dog"], "place": {"x": 1}, "s": '["x"]', "n": 1}]
    path = tmp_path / f"m.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    frozen = freeze(str(path), open_store(str(tmp_path / "run")), shard_rows=1)
    assert frozen.nested == ("place", "things")
    assert [row.columns["things"] for row in read(str(path))] == ['["cat", "dog"]']
