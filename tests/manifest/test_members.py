"""Archives as manifests: images by name, and the samples of WebDatasets."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from paliscribe.errors import UsageError
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest import fixed_columns, freeze, identity, read, scan
from paliscribe.storage import open_store

NAMES = ("b.jpg", "deep/a #1.png", "é/ü.webp", "/abs.jpg", "../up.jpg")
JUNK = ("__MACOSX/._b.jpg", ".hidden.jpg", "deep/.cache/x.png", "notes.md", "deep/LICENSE")


def tar(path: Path, bodies: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as made:
        for name, body in bodies.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            made.addfile(entry, io.BytesIO(body))
    return str(path)


def zipped(path: Path, bodies: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, body in bodies.items():
            made.writestr(name, body)
    return str(path)


def refused(source: str, words: str, **columns: Any) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        list(read(source, **columns))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) - len(source) < 300


@pytest.mark.parametrize("make", [zipped, tar])
def test_images_by_name_as_in_a_folder(make: Any, tmp_path: Path) -> None:
    suffix = "zip" if make is zipped else "tar"
    bodies = {"deep/": b"", **{name: name.encode() for name in (*NAMES, *JUNK)}}
    source = make(tmp_path / f"my photos.{suffix}", bodies)
    told: list[str] = []
    frozen = freeze(source, open_store(str(tmp_path / "run")), shard_rows=9, tell=told.append)
    rows = list(read(source))
    assert [row.id for row in rows] == list(NAMES) and frozen.rows == 5 and fixed_columns(source) is None
    assert [row.image for row in rows] == [f"{source}#{name}" for name in NAMES]
    assert Fetcher().fetch_many([str(row.image) for row in rows]) == [name.encode() for name in NAMES]
    [line] = told
    assert "left out: 3 hidden" in line and "1 .md" in line and "1 without a suffix" in line
    assert {row.id for row in read(source, id_column="image")} == {f"{source}#{name}" for name in NAMES}
    assert identity(source) is None or source in str(identity(source))


def test_archives_of_a_folder_and_of_a_pattern(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/shards")
    for name in ("1.tar", "2.tar"):
        store.put(name, Path(tar(tmp_path / name, {"a.jpg": name.encode()})).read_bytes())
    store.put("deep/3.zip", Path(zipped(tmp_path / "3.zip", {"a.jpg": b"3.zip"})).read_bytes())
    for source, ids in (
        ("/*.tar", ["1.tar#a.jpg", "2.tar#a.jpg"]),
        ("", ["1.tar#a.jpg", "2.tar#a.jpg", "deep/3.zip#a.jpg"]),
    ):
        rows = list(read(f"s3://{bucket}/shards{source}"))
        assert [row.id for row in rows] == ids
        assert [row.image for row in rows] == [f"s3://{bucket}/shards/{name}" for name in ids]
        assert Fetcher().fetch(str(rows[1].image)) == b"2.tar"
    store.put("m.jsonl", b'{"image": "1.tar#a.jpg", "n": 1}\n')
    [row] = read(f"s3://{bucket}/shards")
    assert row.id == "1.tar#a.jpg" and row.columns == {"n": 1}, "a manifest that names members counts alone"
    assert Fetcher().fetch(str(row.image)) == b"1.tar"


def test_a_web_dataset(tmp_path: Path) -> None:
    about = {"caption": "a cat", "width": 9, "id": 4, "image": "x", "tags": ["a"], "uid": "u0", "txt": "inner"}
    first = tar(tmp_path / "0.tar", {
        "README.md": b"about", "d/0.jpg": b"zero", "d/0.json": json.dumps(about).encode(),
        "d/0.txt": " a dog é\n".encode(), "d/0.cls": b"7\n", "d/1.json": b"{}", "d/1.png": b"one",
        "2.json": b'{"caption": "none"}',
        "3.left.jpg": b"left", "3.right.jpg": b"right", "3.json": b'{"caption": "two"}',
        "4.mp3": b"", "4.webp": b"four",
    })  # fmt: skip
    told: list[str] = []
    scan(first, tell=told.append)
    assert told == [f"manifest {first}: left out: 1 .md, 2 samples without an image, 1 .mp3"] or "samples" in told[0]
    rows = list(read(first))
    assert [row.id for row in rows] == ["d/0", "d/1", "3.left.jpg", "3.right.jpg", "4"]
    assert rows[0].columns == {
        "caption": "a cat", "json_width": 9, "json_id": 4, "json_image": "x", "tags": '["a"]', "uid": "u0",
        "json_txt": "inner", "txt": "a dog é", "cls": 7,
    }  # fmt: skip
    assert [row.columns for row in rows[2:]] == [{"caption": "two"}, {"caption": "two"}, {}]
    assert Fetcher().fetch_many([str(row.image) for row in rows]) == [b"zero", b"one", b"left", b"right", b"four"]
    tar(tmp_path / "1.tar", {"z.jpg": b"z", "z.txt": b"last"})
    assert [row.id for row in read(f"{tmp_path}/*.tar")][-1] == "z"
    assert next(read(first, id_column="uid")).id == "u0"
    assert fixed_columns(first) is None
    tar(tmp_path / "2.tar", {"z.jpg": b"z", "z.txt": b"again"})
    with pytest.raises(UsageError, match=r"duplicate ids: .*--id-column image"):
        scan(f"{tmp_path}/*.tar")
    assert scan(f"{tmp_path}/*.tar", id_column="image").rows == 7


def test_equal_names_are_one_row_of_the_last(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "m.zip", "w") as made:
        for body in ("first", "last"):
            made.writestr("a.jpg", body)
    told: list[str] = []
    assert scan(str(tmp_path / "m.zip"), tell=told.append).rows == 1 and "1 of a name that is there before" in told[0]
    [row] = read(str(tmp_path / "m.zip"))
    assert Fetcher().fetch(str(row.image)) == b"last"


def test_refusals(tmp_path: Path) -> None:
    good = tar(tmp_path / "good.tar", {f"{n}.jpg": bytes(2000) for n in range(300)})
    whole = Path(good).read_bytes()
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst", "*.tar.gz"):
        (tmp_path / name.replace("*", "b")).write_bytes(gzip.compress(whole))
        refused(f"{tmp_path}/{name}", "decompress it")
    (tmp_path / "hidden.tar").write_bytes(gzip.compress(whole))
    refused(f"{tmp_path}/hidden.tar", "decompress it")
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    refused(f"{tmp_path}/cut.tar", "damaged or cut off")
    (tmp_path / "cut.zip").write_bytes(Path(zipped(tmp_path / "z.zip", {"a.jpg": b"1"})).read_bytes()[:-9])
    refused(f"{tmp_path}/cut.zip", "cannot be read: not a zip archive, or cut off")
    refused(zipped(tmp_path / "empty.zip", {}), "no rows")
    refused(tar(tmp_path / "empty.tar", {}), "no rows")
    refused(f"{tmp_path}/none.zip", "no such file")
    refused("https://127.0.0.1:9/a.zip", "from a folder or from s3://")
    for body in (b"{", b"\xff", b"[" * 100_000):
        refused(tar(tmp_path / "bad.tar", {"a.jpg": b"1", "a.json": body}), "member 'a.json' is not")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "folder.zip/a.jpg").touch()
    assert [row.id for row in read(f"{tmp_path}/folder.zip")] == ["a.jpg"]
