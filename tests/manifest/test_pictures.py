"""Images inside a Parquet manifest: what is frozen in the place of their bytes, and what is read for it."""

import functools
import http.server
import os
import re
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe.errors import UsageError
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest import freeze, read
from paliscribe.records import ManifestRow
from paliscribe.storage import open_store, s3

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BOTH = {"bytes": b"both", "path": " d/both.png "}
UNNAMED = {"bytes": b"unnamed", "path": None}
BY_PATH = {"bytes": None, "path": "by path.png"}
NEITHER = {"bytes": None, "path": " "}


def write(file: Path, images: pa.Array | list[Any], group: int = 2, **columns: Any) -> str:
    settings = {"write_statistics": columns.pop("statistics", True)}
    pq.write_table(pa.table({"image": images, **columns}), file, row_group_size=group, **settings)
    return str(file)


def held(rows: list[ManifestRow]) -> list[bytes | None]:
    """The bytes of the rows whose image is in the file."""
    fetcher = Fetcher(retries=0)
    inside = [row.image is not None and row.image.startswith("parquet+") for row in rows]
    return [fetcher.fetch(str(row.image)) if there else None for row, there in zip(rows, inside, strict=True)]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("group", [1, 2, 7])
def test_structs_with_bytes_a_path_both_or_neither(group: int, statistics: bool, tmp_path: Path) -> None:
    images = pa.array([UNNAMED, BOTH, BY_PATH, NEITHER, None, BOTH | {"path": "last"}], KIND)
    source = write(tmp_path / "a #1é.parquet", images, group, n=range(6), statistics=statistics)
    rows = list(read(source))
    assert [row.id for row in rows] == [f"{source}#0", "d/both.png", "by path.png", "row-3", "row-4", "last"]
    assert held(rows) == [b"unnamed", b"both", None, None, None, b"both"]
    assert [row.image for row in rows[2:5]] == [f"{tmp_path}/by path.png", None, None]
    assert [row.columns for row in rows] == [{"n": n} for n in range(6)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_binary_columns(kind: pa.DataType, tmp_path: Path) -> None:
    source = write(tmp_path / "m.parquet", pa.array([b"one", None, b"three"], kind))
    rows = list(read(source))
    assert [row.id for row in rows] == [f"{source}#0", "row-1", f"{source}#2"]
    assert held(rows) == [b"one", None, b"three"]


def test_structs_without_any_bytes(tmp_path: Path) -> None:
    [row] = read(write(tmp_path / "m.parquet", [BY_PATH]))
    assert (row.id, row.image) == ("by path.png", f"{tmp_path}/by path.png")


@pytest.mark.parametrize("ids", [["a", "b", None], [1, 2, None], [1.5, 2.5, None]], ids=["text", "int", "by rows"])
def test_ids_that_are_given_count(ids: list[Any], tmp_path: Path) -> None:
    rows = list(read(write(tmp_path / "m.parquet", pa.array([BOTH, UNNAMED, BOTH], KIND), id=ids)))
    assert [row.id for row in rows] == [str(ids[0]), str(ids[1]), "d/both.png"]
    assert held(rows) == [b"both", b"unnamed", b"both"]


def test_columns_of_other_names_and_files_of_equal_names(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"an #image/ö.x": [folder.encode()]}), tmp_path / folder / "m.parquet")
    rows = list(read(str(tmp_path), image_column="an #image/ö.x"))
    assert [row.id for row in rows] == [f"{tmp_path}/x/m.parquet#0", f"{tmp_path}/y/m.parquet#0"]
    assert held(rows) == [b"x", b"y"]


def read_bytes() -> int:
    """Bytes that this process has read so far, from files in the page cache too."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


def test_bytes_are_not_read_until_they_are_fetched_and_then_once(tmp_path: Path) -> None:
    images = [{"bytes": os.urandom(50_000), "path": f"{n}.png"} for n in range(400)]
    source = write(tmp_path / "m.parquet", pa.array(images, KIND), group=300, n=range(400))
    run, fetcher = open_store(str(tmp_path / "run")), Fetcher(concurrency=8)
    before = read_bytes()
    frozen = freeze(source, run, shard_rows=100)
    assert read_bytes() - before < 3_000_000, "of 20 MB"
    assert frozen.rows == 400 and sum(item.size for item in run.list()) < 100_000
    rows, before = list(read(source)), read_bytes()
    for start in range(0, 400, 50):
        found = fetcher.fetch_many([str(row.image) for row in rows[start : start + 50]])
        assert found == [image["bytes"] for image in images[start : start + 50]]
    assert read_bytes() - before < 24_000_000, "20 MB, once"


def test_ranges_of_s3_are_read_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, sizes, once = [os.urandom(60_000) for _ in range(300)], list[int](), s3._Ranges._range
    structs = pa.array([{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(images)], KIND)
    write(tmp_path / "m.parquet", structs, group=50, n=range(300))
    open_store(f"s3://{bucket}").put_file("m.parquet", tmp_path / "m.parquet")

    def counted(stream: s3._Ranges, first: int, last: int) -> bytes:
        sizes.append(last - first + 1)
        return once(stream, first, last)

    monkeypatch.setattr(s3._Ranges, "_range", counted)
    rows = list(read(f"s3://{bucket}/m.parquet"))
    assert sum(sizes) < 500_000, "of 18 MB"
    sizes.clear()
    fetcher = Fetcher()
    for start in range(0, 300, 50):
        found = fetcher.fetch_many([str(row.image) for row in rows[start : start + 50]])
        assert found == images[start : start + 50]
    assert sum(sizes) < 19_000_000, "18 MB, once"


def test_files_of_web_servers_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.parquet", [BOTH])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with pytest.raises(UsageError, match="column 'image' holds images, which are read from a folder or from s3:"):
            list(read(f"http://127.0.0.1:{server.server_address[1]}/m.parquet"))
        server.shutdown()
        thread.join()
