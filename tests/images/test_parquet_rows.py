"""Images that are read from the rows of a Parquet file: in any order, of one version only, in bounded memory."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe.config import ImagesConfig
from paliscribe.errors import RequestError, RowError
from paliscribe.images.fetch import Fetcher
from paliscribe.images.untrusted import GuardedFetcher, UntrustedImages
from paliscribe.manifest import read
from paliscribe.storage import StorageError, get_once, open_store, parquet

KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = [f"image {n}".encode() * (n % 7 + 1) for n in range(200)]


def write(file: Path, images: list[bytes] = IMAGES) -> list[str]:
    """The addresses of images that are written into a file, in row groups of 64."""
    table = pa.table({"image": pa.array([{"bytes": image, "path": None} for image in images], KIND)})
    pq.write_table(table, file, row_group_size=64)
    return [str(row.image) for row in read(str(file))]


def kind(found: bytes | RowError) -> str:
    assert isinstance(found, RowError) and len(str(found).splitlines()) == 1
    return found.kind


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path) if request.param == "disk" else f"s3://{request.getfixturevalue('bucket')}/p?#é"


def stored(place: str, images: list[bytes], folder: Path) -> list[str]:
    """The addresses of images that are stored in a file there."""
    pq.write_table(pa.table({"image": images}), folder / "written", row_group_size=64)
    open_store(place).put("m #.parquet", (folder / "written").read_bytes())
    return [str(row.image) for row in read(f"{place}/m #.parquet")]


def test_any_order_and_any_thread(place: str, tmp_path: Path) -> None:
    addresses, fetcher = stored(place, IMAGES, tmp_path), Fetcher(concurrency=4)
    assert fetcher.fetch_many(addresses) == IMAGES
    order = random.Random(1).sample(range(200), 60)
    assert fetcher.fetch_many([addresses[n] for n in order]) == [IMAGES[n] for n in order]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(fetcher.fetch, addresses)) == IMAGES


def test_a_changed_file_gives_no_other_image(place: str, tmp_path: Path) -> None:
    addresses, fetcher = stored(place, IMAGES, tmp_path), Fetcher(retries=0)
    assert fetcher.fetch(addresses[0]) == IMAGES[0]
    changed = stored(place, IMAGES[::-1], tmp_path)
    found = fetcher.fetch_many(addresses)
    assert found[:16] == IMAGES[:16], "the batch that was read before"
    if place.startswith("s3"):
        assert found == IMAGES, "so small a file was read whole, in the version that was there"
    else:
        assert {kind(each) for each in found[16:]} == {"changed"} and "retry the run" in str(found[-1])
    assert {kind(each) for each in Fetcher().fetch_many(addresses)} == {"changed"}
    assert fetcher.fetch_many(changed) == IMAGES[::-1]
    open_store(place).delete("m #.parquet")
    assert {kind(each) for each in Fetcher().fetch_many(changed[:2])} == {"missing"}


def test_a_file_changed_in_place(tmp_path: Path) -> None:
    addresses, fetcher = write(tmp_path / "m.parquet"), Fetcher(retries=0)
    assert fetcher.fetch(addresses[0]) == IMAGES[0]
    body = (tmp_path / "m.parquet").read_bytes().replace(b"image 1", b"IMAGE 1")
    time.sleep(0.02)
    (tmp_path / "m.parquet").write_bytes(body)
    assert kind(fetcher.fetch_many([addresses[100]])[0]) == "changed"


def test_many_files(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.parquet", IMAGES[n : n + 9]) for n in range(12)]
    fetcher = Fetcher(concurrency=8)
    for number in (8, 3, 0):
        found = fetcher.fetch_many([addresses[number] for addresses in files])
        assert found == [IMAGES[n + number] for n in range(12)]
    assert len(fetcher._rows._files) == parquet.OPEN_FILES


def test_what_is_wrong_is_of_one_row(tmp_path: Path) -> None:
    [first, *others] = write(tmp_path / "m.parquet", [b"12345", b"1", b""])
    [plain] = write(tmp_path / "other.parquet", [b"1"])
    fetcher = Fetcher(retries=0, max_bytes=4)
    assert [kind(fetcher.fetch_many([first])[0]), fetcher.fetch(others[0])] == ["too_large", b"1"]
    wrong = {
        others[1]: "empty",
        first.replace("#image/0/", "#image/3/"): "missing",
        first.replace("#image/", "#picture/"): "no_image",
        first[:-1]: "bad_uri",
        first.replace("parquet+", "parquet+parquet+"): "bad_uri",
        plain.replace("other.parquet", "m.parquet"): "changed",
        "parquet+ftp://a/b.parquet" + first[first.index("#") :]: "bad_uri",
        "parquet+": "missing",  # a local path
    }
    assert [kind(each) for each in fetcher.fetch_many(list(wrong))] == list(wrong.values())


def test_a_damaged_file(tmp_path: Path) -> None:
    stored(str(tmp_path), [os.urandom(1000) for _ in range(200)], tmp_path)
    body = bytearray((tmp_path / "m #.parquet").read_bytes())
    body[60_000:120_000] = bytes(60_000)
    (tmp_path / "m #.parquet").write_bytes(body)
    found = Fetcher(retries=0).fetch_many([str(row.image) for row in read(str(tmp_path / "m #.parquet"))])
    assert {kind(each) for each in found if isinstance(each, RowError)} <= {"corrupt", "no_image"}
    assert kind(found[70]) == "corrupt" and kind(found[100]) == "corrupt"
    assert isinstance(found[150], bytes) and isinstance(found[-1], bytes), "the other row groups are read"


@pytest.mark.parametrize("settings", [{}, {"addresses": ["s3://other/"], "private": True}])
def test_strangers_cannot_read_rows(settings: dict[str, Any], tmp_path: Path) -> None:
    [address] = write(tmp_path / "m.parquet", [b"1"])
    config = ImagesConfig.model_validate(settings)
    in_bucket = f"parquet+s3://bucket/m.parquet{address[address.index('#') :]}"
    for each, expected in ((address, "bad_uri"), (in_bucket, "forbidden")):
        assert kind(GuardedFetcher(config, concurrency=2, retries=0).fetch_many([each])[0]) == expected
        with pytest.raises(RequestError) as caught:
            asyncio.run(UntrustedImages(config).read(each))
        assert caught.value.status == 400
        with pytest.raises(RequestError):
            UntrustedImages(config).check(each)
        with pytest.raises(StorageError, match="unknown scheme"):
            get_once(each, 9, 1, 1.0)


MEASURE = r"""
import re, sys
from pathlib import Path
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest import read
fetcher, rows = Fetcher(), list(read(sys.argv[1]))
for start in range(0, len(rows), 16):
    found = fetcher.fetch_many([row.image for row in rows[start : start + 16]])
    assert all(len(image) == 100_000 for image in found)
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.long
@pytest.mark.parametrize("copies", [1, 50], ids=["", "dictionary"])
def test_memory_does_not_grow_with_a_row_group(copies: int, tmp_path: Path) -> None:
    peaks = []
    for rows in (200, 2000):
        images = [os.urandom(100_000) for _ in range(rows // copies)] * copies
        file = tmp_path / f"{rows}.parquet"
        limit = 2**20 if copies == 1 else 2**26
        pq.write_table(pa.table({"image": images}), file, write_batch_size=16, dictionary_pagesize_limit=limit)
        assert pq.ParquetFile(file).num_row_groups == 1
        command = [sys.executable, "-c", MEASURE, str(file)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))  # KiB
    assert (peaks[1] - peaks[0]) / 1024 < 60, "180 MB of images more"
