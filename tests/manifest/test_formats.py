"""Several files are one manifest: a folder, a prefix or a pattern."""

import gzip
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe import manifest
from paliscribe.errors import UsageError
from paliscribe.storage import open_store


def lines(*names: str) -> str:
    return "".join(json.dumps({"id": name, "image": f"{name}.png"}) + "\n" for name in names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "b.jsonl").write_text(lines("b1", "b2"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines("a1").encode()))
    (tmp_path / "notes.md").write_text("no manifest")
    (tmp_path / "_SUCCESS").touch()
    pq.write_table(pa.table({"id": ["c1"], "image": ["c1.png"]}), tmp_path / "deep/er/c.parquet")
    return tmp_path


def found(source: str) -> dict[str, str | None]:
    return {row.id: row.image for row in manifest.read(source)}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a1", "b1", "b2", "c1"]),
        ("/", ["a1", "b1", "b2", "c1"]),
        ("/*.jsonl", ["b1", "b2"]),
        ("/*.jsonl*", ["a1", "b1", "b2"]),
        ("/**/*.parquet", ["c1"]),
        ("/**/*.jsonl", ["b1", "b2"]),
        ("/deep/*/c.*", ["c1"]),
        ("/d**", ["c1"]),
    ],
)
def test_files_of_a_folder(pattern: str, names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(f"{folder}{pattern}")
    assert list(whole) == names
    assert whole.get("b1", f"{folder}/b1.png") == f"{folder}/b1.png"
    assert whole.get("c1", f"{folder}/deep/er/c1.png") == f"{folder}/deep/er/c1.png", "beside its own file"
    monkeypatch.chdir(folder.parent)
    assert found(f"{folder.name}{pattern}") == whole
    monkeypatch.chdir(folder)
    assert found(pattern.lstrip("/") or ".") == whole


def test_a_prefix(bucket: str, folder: Path) -> None:
    store = open_store(f"s3://{bucket}/m")
    for path in folder.rglob("*.*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    assert list(found(f"s3://{bucket}/m")) == list(found(f"s3://{bucket}/m/**")) == ["a1", "b1", "b2", "c1"]
    assert found(f"s3://{bucket}/m/**/c*.parquet") == {"c1": f"s3://{bucket}/m/deep/er/c1.png"}
    assert manifest.identity(f"s3://{bucket}/m/*.jsonl") == manifest.identity(f"s3://{bucket}/m/*.jsonl") is not None


def test_patterns_of_images(tmp_path: Path) -> None:
    for name in ("x/a.png", "x/b.jpg", "y/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found(f"{tmp_path}/*/*.png") == {f"{n}.png": f"{tmp_path}/{n}.png" for n in ("x/a", "y/c")}
    (tmp_path / "x/m.jsonl").write_text(lines("one"))
    assert len(found(str(tmp_path))) == 3, "a folder with images is a list of them"


def test_what_does_not_match_is_refused(folder: Path) -> None:
    for pattern in ("*.csv", "*/c.parquet", "none/*"):
        with pytest.raises(UsageError, match="no folder or prefix with images or manifests"):
            manifest.scan(f"{folder}/{pattern}")
    with pytest.raises(UsageError, match="a web server's folder cannot be listed"):
        manifest.scan("http://127.0.0.1:1/*.jsonl")


def test_errors_name_the_file(folder: Path) -> None:
    (folder / "b.jsonl").write_text(lines("b1") + "no\n")
    with pytest.raises(UsageError, match=r"/b\.jsonl, line 2: not a JSON object"):
        manifest.scan(str(folder))
    (folder / "b.jsonl").write_text(lines("a1"))
    with pytest.raises(UsageError, match="duplicate ids: 'a1'"):
        manifest.scan(str(folder))


def test_a_list_of_manifests(folder: Path) -> None:
    parts = [f"{folder}/b.jsonl", f"{folder}/deep", f"{folder}/a.*"]
    whole = list(manifest.read(parts))
    assert [(row.row, row.id) for row in whole] == [(0, "b1"), (1, "b2"), (2, "c1"), (3, "a1")]
    store = open_store(str(folder / "run"))
    frozen = manifest.freeze(parts, store, shard_rows=3)
    assert manifest.load(store) == frozen and frozen.source == tuple(parts)
    assert [row for shard in range(2) for row in manifest.Shards(store).read(shard)] == whole
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 10**18))
    assert manifest.identity(parts) not in (None, manifest.identity(parts[::-1]))
    assert manifest.identity([*parts, f"{folder}/none.csv"]) is None
    with pytest.raises(UsageError, match=r"b\.jsonl and 1 more: duplicate ids: 'b1', 'b2'"):
        manifest.scan([parts[0], parts[0]])


def test_images_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    some = list(manifest.read(["a.JPG", "s3://b/c.png"]))
    assert [(row.id, row.image) for row in some] == [("a.JPG", f"{tmp_path}/a.JPG"), ("s3://b/c.png", "s3://b/c.png")]


def test_the_identity_of_a_folder(folder: Path) -> None:
    os.utime(folder / "b.jsonl", (int(time.time()), int(time.time())))
    assert manifest.identity(str(folder)) is None, "by a clock of whole seconds the file is too new"
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 10**18))
    first = manifest.identity(str(folder))
    assert first is not None and first == manifest.identity(str(folder))
    os.utime(folder / "notes.md")
    assert manifest.identity(str(folder)) == first, "it is no manifest"
    os.utime(folder / "b.jsonl", ns=(0, 10**18 + 1))
    assert manifest.identity(str(folder)) not in (first, None)
    (folder / "a.png").touch()
    assert manifest.identity(str(folder)) is None, "a list of images is read anyway"
