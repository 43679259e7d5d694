"""Manifests of every format are read, checked and frozen, and what is wrong with one is said with its line."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paliscribe.errors import UsageError
from paliscribe.manifest import Shards, freeze, load, read, scan
from paliscribe.manifest.frozen import INDEX
from paliscribe.records import ManifestRow
from paliscribe.storage import open_store

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"id": "one", "image": "a.png", "code": "007", "words": 'say "hi", twice\nor not'},
    {"id": "two", "image": "sub/b ü.png", "code": "8", "words": "naïve – 日本"},
]
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda body: body,
    ".gz": gzip.compress,
    ".zst": lambda body: pa.compress(body, codec="zstd", asbytes=True),
}


def as_jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def written(folder: Path, name: str, body: bytes | str) -> str:
    path = folder / name
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return str(path)


def jsonl(folder: Path, rows: Rows) -> str:
    return written(folder, "m.jsonl", as_jsonl(rows))


def refusal(source: str, **names: Any) -> str:
    with pytest.raises(UsageError) as caught:
        scan(source, **names)
    message = str(caught.value)
    assert message.startswith("manifest ") and "\n" not in message
    assert source in message
    return message


def expected(folder: str) -> list[ManifestRow]:
    return [
        ManifestRow(number, row["id"], f"{folder}/{row['image']}", {"code": row["code"], "words": row["words"]})
        for number, row in enumerate(ROWS)
    ]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", ["m.jsonl", "m.ndjson", "m.csv", "M.JSONL"])
def test_text_formats(name: str, codec: str, tmp_path: Path) -> None:
    body = as_csv(ROWS) if name.endswith("csv") else as_jsonl(ROWS)
    for mark in (b"", b"\xef\xbb\xbf"):
        source = written(tmp_path, name + codec, CODECS[codec](mark + body))
        assert list(read(source)) == expected(str(tmp_path))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_list(codec: str, ending: str, tmp_path: Path) -> None:
    body = ending.join(["a.png", "", "  /abs/b.png ", "https://host/c d.jpg"]).encode()
    found = list(read(written(tmp_path, "images.txt" + codec, CODECS[codec](body))))
    assert [(row.id, row.image) for row in found] == [
        ("a.png", f"{tmp_path}/a.png"),
        ("/abs/b.png", "/abs/b.png"),
        ("https://host/c d.jpg", "https://host/c d.jpg"),
    ]


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "m.parquet")
    assert list(read(str(tmp_path / "m.parquet"))) == expected(str(tmp_path))


def test_parquet_keeps_types_and_spells_the_rest(tmp_path: Path) -> None:
    moment = datetime(2024, 2, 29, 12, 30, 1)
    values = {
        "small": pa.array([7], pa.int8()),
        "real": pa.array([0.5], pa.float32()),
        "flag": pa.array([True]),
        "day": pa.array([date(2024, 2, 29)]),
        "clock": pa.array([time(12, 30)]),
        "moment": pa.array([moment]),
        "nanos": pa.array([moment], pa.timestamp("ns")),
        "price": pa.array([Decimal("1.50")]),
        "tags": pa.array([["b", "a"]]),
        "place": pa.array([{"y": 1, "x": None}]),
        "sort": pa.array(["cat"]).dictionary_encode(),
        "nothing": pa.array([None], pa.string()),
    }
    pq.write_table(pa.table({"image": ["a.png"], **values}), tmp_path / "m.parquet")
    (row,) = read(str(tmp_path / "m.parquet"))
    assert row.columns == {
        "small": 7,
        "real": 0.5,
        "flag": True,
        "day": "2024-02-29",
        "clock": "12:30:00",
        "moment": "2024-02-29T12:30:01",
        "nanos": "2024-02-29T12:30:01",
        "price": "1.50",
        "tags": '["b", "a"]',
        "place": '{"x": null, "y": 1}',
        "sort": "cat",
    }
    pq.write_table(pa.table({"image": ["a.png"], "raw": [b"\x00"]}), tmp_path / "raw.parquet")
    assert "column 'raw' is binary, and bytes cannot be carried; leave it out with --drop-column raw" in refusal(
        str(tmp_path / "raw.parquet")
    )


@pytest.mark.parametrize("id_column", ["id", "name"])
def test_folder(id_column: str, tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "notes.md", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for source in (str(tmp_path), f"{tmp_path}/"):
        found = list(read(source, id_column=id_column))
        assert [row.id for row in found] == ["a.png", "b.JPG", "deep/er/c.webp"]
        assert [row.image for row in found] == [f"{tmp_path}/{row.id}" for row in found]


def test_manifests_on_s3(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/some")
    store.put("m.csv.gz", gzip.compress(as_csv(ROWS)))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    store.put("m.parquet", sink.getvalue())
    for name in ("m.csv.gz", "m.parquet"):
        assert list(read(f"s3://{bucket}/some/{name}")) == expected(f"s3://{bucket}/some")
    store.put("images/a.png", b"")
    (row,) = read(f"s3://{bucket}/some/images/")
    assert (row.id, row.image) == ("a.png", f"s3://{bucket}/some/images/a.png")


def test_ids_and_images(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path,
        [
            {"id": "given", "image": "a.png"},
            {"image": "b.png"},
            {"id": 7, "image": "s3://other/c.png"},
            {"id": "no image", "image": None},
            {"image": "  "},
            {"n": 1},
        ],
    )
    found = list(read(source))
    assert [row.id for row in found] == ["given", "b.png", "7", "no image", "row-4", "row-5"]
    base = str(tmp_path)
    assert [row.image for row in found] == [f"{base}/a.png", f"{base}/b.png", "s3://other/c.png", None, None, None]
    assert [row.row for row in found] == list(range(6))


def test_other_column_names(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"url": "a.png", "key": "k1", "n": 1}])
    (row,) = read(source, image_column="url", id_column="key")
    assert (row.id, row.image, row.columns) == ("k1", f"{tmp_path}/a.png", {"n": 1})


def test_a_relative_manifest_has_absolute_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path, [{"image": "a.png"}])
    monkeypatch.chdir(tmp_path)
    assert next(read("m.jsonl")).image == f"{tmp_path}/a.png"


def test_columns_keep_their_types(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path,
        [
            {"image": "a", "n": 1, "x": 1, "b": True, "s": "", "nested": {"k": [1, "é"]}, "late": None},
            {"image": "b", "n": 2**53 + 1, "x": 0.5, "b": False, "late": "here", "never": None},
            {"image": "c", "x": 2**53},
        ],
    )
    store = open_store(str(tmp_path / "run"))
    frozen = freeze(source, store, shard_rows=10)
    assert {field.name: str(field.type) for field in frozen.schema} == {
        "b": "bool",
        "late": "string",
        "never": "string",
        "n": "int64",
        "nested": "string",
        "s": "string",
        "x": "double",
    }
    columns = [row.columns for row in Shards(store).read(0)]
    assert columns == [
        {"n": 1, "x": 1.0, "b": True, "s": "", "nested": '{"k": [1, "\\u00e9"]}'},
        {"n": 2**53 + 1, "x": 0.5, "b": False, "late": "here"},
        {"x": float(2**53)},
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"image": "a", "task": "t"}], "column 'task' has the name of a result column; rename it"),
        ([{"image": "a", "width": 1, "row": 2}], "column 'row', 'width' has the name"),
        ([{"image": "a"}, {"image": "b", "s": "half \ud800"}], "row 2 holds text that is not Unicode"),
        ([{"image": "a", "id": "\udfff"}], "row 1 holds text that is not Unicode"),
        ([{"url": "a", "id": "1"}, {"url": "b", "more": 1}], "no column 'image' (columns: 'url', 'id', 'more')"),
        ([{"url": "a"}], "set the right one with --image-column"),
        ([{"url": "a", "more": 1}] * 3000, "no column 'image' (columns: 'url', 'more')"),
    ],
)
def test_rows_that_are_refused(rows: Rows, words: str, tmp_path: Path) -> None:
    assert words in refusal(jsonl(tmp_path, rows))


def test_an_image_column_under_another_name_does_not_free_the_reserved_ones(tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"url": "a", "image": "b"}])
    assert "column 'image' has the name of a result column" in refusal(source, image_column="url")


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("m.jsonl", '{"image": "a"}\n\n{"image": \n', "m.jsonl, line 3: not a JSON object"),
        ("m.jsonl", '{"image": "a"}\n["a"]\n', "line 2: not a JSON object"),
        ("m.jsonl", '{"image": "a"}\n' + "[" * 100_000, "line 2: not a JSON object"),
        ("m.jsonl", b'{"image": "a"}\n{"image": "\xff"}\n', "not UTF-8 text"),
        ("m.csv", 'image,s\na,"x\ny"\nb\n', "line 4: 1 values under 2 columns"),
        ("m.csv", "image,s\na,b,c\n", "line 2: 3 values under 2 columns"),
        ("m.csv", 'image,s\na,"b\n', "line 2: "),
        ("m.csv", 'image,s\na,"b"c\n', "line 2: "),
        ("m.csv", "image,image\na,b\n", "the header names a column twice"),
        ("m.csv", "url;s\na;b\n", "no column 'image' (columns: 'url', 's')"),
        ("m.csv.gz", b"image\na\n", "cannot be read"),
        ("m.csv.gz", gzip.compress(b"image\n" + bytes(range(65, 91)) * 9, mtime=0)[:-12], "cannot be read"),
        ("m.csv.gz", gzip.compress(b"image\na\n", mtime=0)[:10] + b"\xff" * 30, "cannot be read"),
        ("m.jsonl.zst", b'{"image": "a"}', "cannot be read"),
        ("m.jsonl.zst", CODECS[".zst"](b'{"image": "a"}' * 9)[:-6], ""),
        ("m.parquet", b"PAR1 no", "cannot be read"),
        ("m.parquet", b"", "cannot be read"),
        ("m.xlsx", b"x", "not a file named .jsonl, .ndjson, .csv, .parquet"),
        ("m.jsonl", "", ": no rows"),
        ("m.jsonl", "\n \n", ": no rows"),
        ("m.jsonl.gz", gzip.compress(b"", mtime=0), ": no rows"),
        ("m.csv", "", ": no rows"),
        ("m.csv", "image,s\n", ": no rows"),
        ("m.txt", "\n", ": no rows"),
    ],
)
def test_files_that_are_refused(name: str, body: bytes | str, words: str, tmp_path: Path) -> None:
    assert words in refusal(written(tmp_path, name, body))


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), tmp_path / "m.parquet")
    assert ": no rows" in refusal(str(tmp_path / "m.parquet"))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(str(tmp_path / "none.jsonl"))
    assert "no folder or prefix with images" in refusal(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert "no folder or prefix with images" in refusal(str(tmp_path / "empty"))
    (tmp_path / "folder.csv").mkdir()
    assert "folder" in refusal(str(tmp_path / "folder.csv"))


def test_duplicate_ids_are_named(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(300)]
    twice = names + names[:8][::-1] + ["n0"]
    message = refusal(jsonl(tmp_path, [{"id": name, "image": "same.png"} for name in twice]))
    assert "duplicate ids: 'n0', 'n1', 'n2', 'n3', 'n4' and 3 more." in message
    message = refusal(jsonl(tmp_path, [{"image": "a.png"}, {"image": "b.png"}, {"image": "a.png"}]))
    assert "'a.png'. Give each row a unique id in column 'id'" in message


def test_freezing_twice_gives_equal_bytes(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.png", "n": number, "s": "é" * (number % 3)} for number in range(25)]
    source = jsonl(tmp_path, rows)
    os.utime(source, ns=(0, 10**18))  # so that the file's identity is known from the start
    bodies, told = [], list[int]()
    for name in ("one", "two"):
        store = open_store(str(tmp_path / name))
        frozen = freeze(source, store, shard_rows=10, progress=told.append)
        assert load(store) == frozen
        bodies.append({found.key: store.get(found.key) for found in store.list()})
    assert bodies[0] == bodies[1] and len(bodies[0]) == 2
    assert told == [25, 25]
    assert (frozen.rows, frozen.shards, frozen.shard_rows, frozen.source) == (25, 3, 10, source)
    assert [frozen.rows_of(shard) for shard in range(3)] == [10, 10, 5]
    assert [row for shard in range(3) for row in Shards(store).read(shard)] == list(read(source))
    found = scan(source)
    assert (found.digest, found.rows, found.schema) == (frozen.digest, frozen.rows, frozen.schema)


def test_the_digest_tells_every_change(tmp_path: Path) -> None:
    first: dict[str, Any] = {"id": "a", "image": "a.png", "n": 1}
    digests = [
        scan(jsonl(tmp_path, rows)).digest
        for rows in (
            [first, {"image": "b.png"}],
            [{"image": "b.png"}, first],
            [first | {"n": 2}, {"image": "b.png"}],
            [first | {"n": "1"}, {"image": "b.png"}],
            [first | {"m": 1}, {"image": "b.png"}],
            [first | {"id": "A"}, {"image": "b.png"}],
            [first, {"image": "c.png", "id": "b.png"}],
            [first],
        )
    ]
    assert len(set(digests)) == len(digests)
    same: Rows = [dict(reversed(first.items())) | {"none": None}, {"image": "b.png"}]
    assert scan(jsonl(tmp_path, same)).digest == digests[0], "neither the order of columns nor nulls count"


@pytest.mark.parametrize("later", [{"n": 2}, {"n": "x"}, {"other": 1}, {}])
def test_a_manifest_that_changes_while_it_is_frozen_is_refused(later: dict[str, Any], tmp_path: Path) -> None:
    source = jsonl(tmp_path, [{"image": "a.png", "n": 1}])
    os.utime(source, ns=(0, 10**18))
    store = open_store(str(tmp_path / "run"))

    def change(rows: int) -> None:
        jsonl(tmp_path, [{"image": "a.png", **later}])

    with pytest.raises(UsageError, match="changed while it was read; run the command again"):
        freeze(source, store, shard_rows=1, progress=change)
    assert load(store) is None


def test_a_freeze_that_was_cut_short_is_none(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    assert load(store) is None
    freeze(jsonl(tmp_path, [{"image": "a.png"}]), store, shard_rows=1)
    store.delete(INDEX)
    assert load(store) is None


MEASURE = r"""
import re, sys
from pathlib import Path
from paliscribe.manifest import freeze
from paliscribe.storage import open_store
source, output = sys.argv[1:]
freeze(source, open_store(output), shard_rows=5000)
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # ru_maxrss has the parent's in it
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_manifest(kind: str, tmp_path: Path) -> None:
    peaks = []
    for rows in (400_000, 2_000_000):
        source = tmp_path / f"{rows}.{kind}"
        images = [f"images/{number:09d}.png" for number in range(rows)]
        if kind == "parquet":
            table = pa.table({"image": images, "label": [f"label of {image}" for image in images]})
            pq.write_table(table, source, row_group_size=10_000)
        else:
            with source.open("w") as file:
                file.writelines(f'{{"image": "{image}", "label": "label of {image}"}}\n' for image in images)
        command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"run-{rows}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))  # KiB
    assert (peaks[1] - peaks[0]) / 1024 < 100, "a row more takes less than its own text, buffers included"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
reference = text.map(str.strip).filter(bool)


@settings(max_examples=60 if os.environ.get("FULL") else 25, deadline=None)
@given(st.lists(st.tuples(reference, text), min_size=1, max_size=6, unique_by=lambda row: row[0]))
def test_any_text_survives(pairs: list[tuple[str, str]]) -> None:
    rows = [{"id": name, "image": "a.png", "words": words} for name, words in pairs]
    with tempfile.TemporaryDirectory() as folder:
        digests = set()
        for name, body in (("m.jsonl", as_jsonl(rows)), ("m.csv", as_csv(rows))):
            store = open_store(f"{folder}/{name}-run")
            frozen = freeze(written(Path(folder), name, body), store, shard_rows=100)
            assert [(row.id, row.columns["words"]) for row in Shards(store).read(0)] == pairs
            digests.add(frozen.digest)
        assert len(digests) == 1
