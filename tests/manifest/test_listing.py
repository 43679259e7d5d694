"""Folders as cameras, browsers, Finder and notebooks leave them."""

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paliscribe.errors import UsageError
from paliscribe.images.decode import FORMATS, decode
from paliscribe.images.fetch import Fetcher
from paliscribe.images.formats import PLUGINS, is_installed
from paliscribe.manifest import fixed_columns, freeze, listing, read, scan
from paliscribe.manifest.listing import IMAGES, OPTIONAL, suffixes
from paliscribe.storage import open_store

JUNK = (
    "._one.jpg", ".thumbnails/one.jpg", "__MACOSX/one.jpg", "deep/__MACOSX/._one.jpg", ".ipynb_checkpoints/one.png",
    "deep/.cache/x/one.jpg", "@eaDir/one.jpg",
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_optional_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are listed as where no optional library is installed."""
    monkeypatch.setattr(listing, "suffixes", lambda: IMAGES)


def filled(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def told(source: str, run: Path) -> list[str]:
    lines: list[str] = []
    freeze(source, open_store(str(run)), shard_rows=9, tell=lines.append)
    return lines


def test_every_format_that_is_decoded_is_listed() -> None:
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known <= set(IMAGES)
    others = {suffix for suffix, name in Image.registered_extensions().items() if name not in (*FORMATS, "MPO")}
    assert not others & set(IMAGES)


@pytest.mark.parametrize("library", OPTIONAL)
def test_optional_formats_are_listed_where_they_are_read(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("IMG_1.HEIC", "IMG_2.heif", "deep/IMG_3.Hif", "scan.JXL", "a.png")
    source = filled(tmp_path / "photos", *names, "notes.txt")
    for there in (library, ""):
        with monkeypatch.context() as patch:
            patch.setattr(listing, "find_spec", lambda name, there=there: name if name == there else None)
            patch.setattr(listing, "suffixes", suffixes.__wrapped__)
            found = {row.id for row in read(source)}
        assert found == {"a.png"} | {name for name in names if there and name.lower().endswith(OPTIONAL[there])}


def test_the_names_of_optional_formats_are_those_of_their_libraries() -> None:
    for form in (name for name in PLUGINS if is_installed(name)):
        known = {suffix for suffix, name in Image.registered_extensions().items() if name == form}
        assert known == set(OPTIONAL[PLUGINS[form]])


@pytest.mark.parametrize("name", ["album.jpg", "scans.tiff", "photos.csv", "photos.parquet", "m.jsonl.gz", "x.zip"])
def test_folders_with_the_name_of_a_file(name: str, tmp_path: Path) -> None:
    source = filled(tmp_path / name, "a.png", "deep.png/b.png")
    assert [row.id for row in read(source)] == [row.id for row in read(f"{source}/")] == ["a.png", "deep.png/b.png"]


def test_a_parquet_manifest_as_spark_writes_it(tmp_path: Path) -> None:
    """A folder of the manifest's name, with parts, checksums and a marker."""
    source = filled(tmp_path / "m.parquet", "_SUCCESS", "._SUCCESS.crc", ".part-00000.snappy.parquet.crc")
    for number in range(2):
        part = pa.table({"image": [f"{number}.png"], "n": [number]})
        pq.write_table(part, tmp_path / "m.parquet" / f"part-0000{number}.snappy.parquet")
    assert [(Path(row.id).name, row.columns) for row in read(source)] == [("0.png", {"n": 0}), ("1.png", {"n": 1})]
    assert fixed_columns(source) is None


def test_usual_names_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    names = ("one.jpg", "two.jfif", "three.jpe", "FOUR.JPEG", "five.PJPEG", "deep/six.Jp2")
    source = filled(tmp_path / "photos", *names, "IMG_1.HEIC", "IMG_2.heic", "notes.txt", "LICENSE", *JUNK)
    assert sorted(row.id for row in read(source)) == sorted(names)
    [line] = told(source, tmp_path / "run")
    assert line == f"manifest {source}: left out: 7 hidden, 2 .heic, 1 without a suffix, 1 .txt" or (
        line == f"manifest {source}: left out: 7 hidden, 2 .heic, 1 .txt, 1 without a suffix"
    )
    assert told(filled(tmp_path / "clean", "a.png"), tmp_path / "run-2") == []


def test_many_kinds_are_one_short_line(tmp_path: Path) -> None:
    source = filled(tmp_path / "photos", "a.png", *(f"x{n}.suffix{n}" for n in range(40)), "b." + "y" * 200)
    [line] = told(source, tmp_path / "run")
    assert "and 36 more" in line and len(line) - len(source) < 150


def test_prefixes_are_listed_by_the_same_rule(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/photos")
    for name in ("one.jpg", "two.jfif", "IMG_1.HEIC", *JUNK):
        store.put(name, b"x")
    assert [row.id for row in read(f"s3://{bucket}/photos")] == ["one.jpg", "two.jfif"]
    assert told(f"s3://{bucket}/photos", tmp_path / "run") == [
        f"manifest s3://{bucket}/photos: left out: 7 hidden, 1 .heic"
    ]


def test_hidden_folders_can_be_asked_for(tmp_path: Path) -> None:
    source = filled(tmp_path, "a.png", ".hidden/b.png", ".hidden/.c/d.png")
    assert [row.id for row in read(f"{source}/.hidden")] == ["b.png"]
    assert [row.id for row in read(f"{source}/*.png")] == ["a.png"]
    assert [row.id for row in read(f"{source}/**")] == ["a.png"]
    assert [row.id for row in read(f"{source}/.h*/*.png")] == [".hidden/b.png"]


def test_hidden_manifests_are_none(tmp_path: Path) -> None:
    filled(tmp_path, "._m.jsonl", ".ipynb_checkpoints/m-checkpoint.jsonl", "__MACOSX/._m.csv")
    (tmp_path / "m.jsonl").write_text('{"image": "a.png"}\n')
    assert [row.id for row in read(str(tmp_path))] == ["a.png"]


def test_a_folder_of_other_pictures_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder or prefix with images or manifests \(left out: 2 \.heic\)"):
        scan(filled(tmp_path, "a.heic", "b.HEIC"))


def test_a_name_that_is_no_text_is_one_row(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    (tmp_path / "a.png").rename(os.fsdecode(odd))
    filled(tmp_path, "b.png")
    [escaped, plain] = sorted(read(str(tmp_path)), key=lambda row: row.id, reverse=True)
    assert (escaped.id, plain.id) == ("caf\\xe9.png", "b.png")
    assert escaped.image == f"file://{tmp_path}/caf%E9.png"
    [found] = Fetcher(concurrency=1, retries=0, timeout=9, max_bytes=10**6).fetch_many([escaped.image])
    assert isinstance(found, bytes) and decode(found, 28).width == 9
    assert scan(str(tmp_path)).rows == 2


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.txt", "m.parquet", "caf\udce9.jsonl", ""])
def test_a_manifest_in_a_folder_whose_name_is_no_text(name: str, tmp_path: Path) -> None:
    """Its images are found, also by relative addresses, and its rows can be frozen."""
    (folder := tmp_path / "caf\udce9").mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "100%41 a.png")
    source = folder / name if name else folder
    if name == "m.parquet":
        with source.open("wb") as file:
            pq.write_table(pa.table({"image": ["100%41 a.png"]}), file)
    elif name:
        rows = {"jsonl": '{"image": "./100%41 a.png"}\n', "csv": "image\n100%41 a.png\n", "txt": "100%41 a.png\n"}
        source.write_text(rows[name.rpartition(".")[2]])
    [row] = read(str(source))
    [found] = Fetcher(retries=0).fetch_many([str(row.image)])
    assert isinstance(found, bytes) and decode(found, 28).width == 9
    assert freeze(str(source), open_store(str(tmp_path / "run")), shard_rows=9).rows == 1


def test_suffixes_of_any_case(tmp_path: Path) -> None:
    for name in ("M.JSONL.GZ", "m.Ndjson.gz", "M.JSONL"):
        body = b'{"image": "a.png"}\n'
        (tmp_path / name).write_bytes(gzip.compress(body) if name.lower().endswith("gz") else body)
        assert [row.id for row in read(str(tmp_path / name))] == ["a.png"]
