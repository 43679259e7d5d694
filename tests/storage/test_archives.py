"""Members of zip and tar archives: found, read by ranges, refused."""

import io
import random
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from paliscribe.config import ImagesConfig
from paliscribe.errors import RowError
from paliscribe.images.fetch import Fetcher
from paliscribe.images.untrusted import GuardedFetcher
from paliscribe.storage import archives, open_store, tar_members, zip_members

NAMES = (
    "a.jpg",
    "deep/er/b c.png",
    "é/ü#1.jpg",
    "/abs.jpg",
    "../up.jpg",
    "日本.webp",
    "x.zip#y.jpg",
    "n" * 300 + ".png",
)
BODIES = {name: random.Random(name).randbytes(3000) + bytes(2000) for name in NAMES}


def zipped(
    bodies: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, start: bytes = b"", comment: bytes = b""
) -> bytes:
    made = io.BytesIO()
    made.write(start)
    with zipfile.ZipFile(made, "a" if start else "w", method) as archive:
        archive.mkdir("deep")
        for name, body in bodies.items():
            archive.writestr(name, body)
        archive.comment = comment
    return made.getvalue()


def tarred(bodies: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as archive:
        for name, body in bodies.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return made.getvalue()


def kind(found: bytes | RowError) -> str:
    assert isinstance(found, RowError) and len(str(found).splitlines()) == 1 and len(str(found)) < 300
    return found.kind


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "a #é") if request.param == "disk" else f"s3://{request.getfixturevalue('bucket')}/p?#é"


WAYS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "stored.zip": lambda bodies: zipped(bodies, zipfile.ZIP_STORED),
    "deflated.ZIP": zipped,
    "after a program.zip": lambda bodies: zipped(bodies, start=b"#!/bin/sh\n" * 99),
    "with a comment.zip": lambda bodies: zipped(bodies, comment=b"PK\5\6" * 9 + b"x" * 60_000),
    "pax.tar": tarred,
    "gnu.tar": lambda bodies: tarred(bodies, tarfile.GNU_FORMAT),
}


def test_members_are_read_in_any_order_and_thread(place: str) -> None:
    store, fetcher = open_store(place), Fetcher(concurrency=4)
    for name, make in WAYS.items():
        store.put(name, make(BODIES))
        addresses = [f"{place}/{name}#{member}" for member in BODIES]
        assert fetcher.fetch_many(addresses) == list(BODIES.values()), name
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(fetcher.fetch, addresses[::-1])) == list(BODIES.values())[::-1]
        assert kind(fetcher.fetch_many([f"{place}/{name}#no.jpg"])[0]) == "missing"
        assert kind(fetcher.fetch_many([f"{place}/{name}#deep/"])[0]) == "missing"
    assert kind(fetcher.fetch_many([f"{place}/none.zip#a.jpg"])[0]) == "missing"


def test_ordinary_names_with_marks_stay_what_they_are(place: str) -> None:
    store, fetcher = open_store(place), Fetcher(retries=0)
    for key in ("pic#1.jpg", "a.zip#b.jpg", "c.tar#d/e.jpg", "f.tar.gz#g.jpg", "h.zip#", "i.zip#j/k.zip#l.jpg"):
        store.put(key, key.encode())
        assert fetcher.fetch(f"{place}/{key}") == key.encode()
    store.put("a.zip", zipped({"other.jpg": b"member"}))
    fetcher = Fetcher(retries=0)
    assert [fetcher.fetch(f"{place}/a.zip#{name}") for name in ("other.jpg", "b.jpg")] == [b"member", b"a.zip#b.jpg"]
    store.put("i.zip#j/k.zip", zipped({"m.jpg": b"inner"}))
    assert fetcher.fetch(f"{place}/i.zip#j/k.zip#m.jpg") == b"inner"


def test_what_cannot_be_read_is_a_kind_of_its_own(tmp_path: Path) -> None:
    body = random.Random(1).randbytes(5000)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("bzip2.jpg", body, zipfile.ZIP_BZIP2)
        archive.writestr("lzma.jpg", body, zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "bzip2.jpg")
        archive.writestr("bomb.jpg", bytes(50_000_000), zipfile.ZIP_DEFLATED)
        archive.writestr("empty.jpg", b"")
        archive.writestr("twice.jpg", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice.jpg", b"last")
    raw = bytearray(zipped({"secret.jpg": body}))
    raw[raw.rindex(b"PK\1\2") + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(raw)
    with tarfile.open(tmp_path / "m.tar", "w") as made:
        for name, sort in (("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = sort, "x"
            made.addfile(entry)
    (tmp_path / "packed.tar").write_bytes(zlib.compress(tarred(BODIES), wbits=31))
    (tmp_path / "folder.zip").mkdir()
    expected = {
        "m.zip#bzip2.jpg": "unsupported", "m.zip#lzma.jpg": "unsupported", "m.zip#link.jpg": "unsupported",
        "m.zip#bomb.jpg": "too_large", "m.zip#empty.jpg": "empty", "encrypted.zip#secret.jpg": "unsupported",
        "m.tar#link.jpg": "unsupported", "m.tar#hard.jpg": "unsupported", "m.tar#pipe": "missing",
        "packed.tar#a.jpg": "unsupported", "m.tar.gz#a.jpg": "unsupported", "m.tgz#a.jpg": "unsupported",
        "folder.zip#a.jpg": "bad_uri",
    }  # fmt: skip
    fetcher = Fetcher(retries=0, max_bytes=1_000_000)
    tracemalloc.start()
    found = fetcher.fetch_many([f"{tmp_path}/{name}" for name in expected])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [kind(each) for each in found] == list(expected.values()) and peak < 20e6
    assert "decompress it" in str(found[9]) and "bzip2" in str(found[0]) and "encrypted" in str(found[5])
    assert fetcher.fetch(f"{tmp_path}/m.zip#twice.jpg") == b"last"
    assert kind(fetcher.fetch_many(["https://127.0.0.1:9/a.zip#b.jpg"])[0]) == "unsupported"


def test_a_size_that_lies_is_no_bomb(tmp_path: Path) -> None:
    raw = bytearray(zipped({"bomb.jpg": bytes(50_000_000)}))
    at = raw.rindex(b"PK\1\2") + 24
    raw[at : at + 4] = struct.pack("<L", 1000)
    (tmp_path / "m.zip").write_bytes(raw)
    tracemalloc.start()
    found = Fetcher(retries=0, max_bytes=1_000_000).fetch_many([f"{tmp_path}/m.zip#bomb.jpg"])[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kind(found) == "corrupt" and peak < 5e6


@pytest.mark.parametrize("name", ["m.zip", "m.tar"])
def test_damaged_archives(name: str, tmp_path: Path) -> None:
    bodies = {f"{n}.jpg": random.Random(n).randbytes(4000) for n in range(20)}
    whole = zipped(bodies, zipfile.ZIP_STORED) if name == "m.zip" else tarred(bodies)
    addresses = [f"{tmp_path}/{name}#{member}" for member in bodies]
    for cut in (0, 1, 600, len(whole) // 2, len(whole) * 3 // 4):
        (tmp_path / name).write_bytes(whole[:cut])
        found = Fetcher(retries=0).fetch_many(addresses)
        assert {kind(each) for each in found if isinstance(each, RowError)} == {"corrupt"}
        assert all(each == body for each, body in zip(found, bodies.values(), strict=True) if isinstance(each, bytes))
        assert name == "m.zip" or cut < 1000 or isinstance(found[5], bytes), "what is before the end is read"
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2 : len(whole) // 2 + 9000] = b"\xff" * 9000
    (tmp_path / name).write_bytes(spoilt)
    found = Fetcher(retries=0).fetch_many(addresses)
    assert {kind(each) for each in found if isinstance(each, RowError)} == {"corrupt"} and isinstance(found[0], bytes)


def test_any_damage_is_an_error_of_a_row(tmp_path: Path) -> None:
    draw = random.Random(7)
    bodies = {f"d/{n}.jpg": draw.randbytes(300) for n in range(5)}
    for name, whole in (("m.zip", zipped(bodies)), ("m.tar", tarred(bodies))):
        for _ in range(60):
            spoilt = bytearray(whole)
            for _ in range(draw.choice((1, 1, 8, 64))):
                spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
            (tmp_path / name).write_bytes(spoilt)
            for found in Fetcher(retries=0, concurrency=1).fetch_many([f"{tmp_path}/{name}#{each}" for each in bodies]):
                assert isinstance(found, bytes) or kind(found) in (
                    "corrupt",
                    "missing",
                    "unsupported",
                    "too_large",
                    "empty",
                )


def test_a_changed_archive(place: str) -> None:
    store, fetcher = open_store(place), Fetcher(retries=0)
    store.put("m.zip", zipped({"a.jpg": b"one", "b.jpg": b"two"}))
    assert fetcher.fetch(f"{place}/m.zip#a.jpg") == b"one"
    time.sleep(0.02)
    store.put("m.zip", zipped({"b.jpg": b"another", "a.jpg": b"and"}))
    assert kind(fetcher.fetch_many([f"{place}/m.zip#b.jpg"])[0]) == "changed"
    assert fetcher.fetch(f"{place}/m.zip#b.jpg") == b"another"


def test_names_of_other_systems(tmp_path: Path) -> None:
    raw = (
        zipped({"xxxxx.jpg": b"mac", "yyy.jpg": b"dos"}).replace(b"xxxxx", "é日".encode()).replace(b"yyy", b"\x82\x82b")
    )
    (tmp_path / "m.zip").write_bytes(raw)
    with (tmp_path / "m.zip").open("rb") as file:
        assert [member.name for member in zip_members.members(file)] == ["é日.jpg", "ééb.jpg"]
    as_python_lists_it = "é日".encode().decode("cp437")
    for name, body in (("é日", b"mac"), (as_python_lists_it, b"mac"), ("ééb", b"dos")):
        assert Fetcher().fetch(f"{tmp_path}/m.zip#{name}.jpg") == body
    with tarfile.open(tmp_path / "m.tar", "w", format=tarfile.GNU_FORMAT) as made:
        for name in ("./a.jpg", "./d/\udce9.jpg"):
            made.addfile(tarfile.TarInfo(name))
    with (tmp_path / "m.tar").open("rb") as file:
        assert [member.name for member in tar_members.members(file)] == ["a.jpg", "d/\\xe9.jpg"]


def test_a_zip64_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)
    (tmp_path / "m.zip").write_bytes(raw := zipped(BODIES, zipfile.ZIP_STORED))
    assert b"PK\6\6" in raw
    assert Fetcher().fetch_many([f"{tmp_path}/m.zip#{name}" for name in BODIES]) == list(BODIES.values())


def test_few_indexes_are_kept(tmp_path: Path) -> None:
    fetcher = Fetcher(concurrency=4)
    for n in range(archives.KEPT + 4):
        (tmp_path / f"{n}.tar").write_bytes(tarred({"a.jpg": str(n).encode()}))
    for _ in range(2):
        for n in range(archives.KEPT + 4):
            assert fetcher.fetch(f"{tmp_path}/{n}.tar#a.jpg") == str(n).encode()
    assert len(fetcher._members._kept) == archives.KEPT


def test_one_request_a_member(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"s3://{bucket}/r")
    bodies = {f"{n:05d}.jpg": b"%d" % n for n in range(10_000)}
    for name, made in (("m.zip", zipped(bodies)), ("m.tar", tarred(bodies))):
        store.put(name, made)
        fetcher, sizes = Fetcher(), list[int]()
        assert fetcher.fetch(f"s3://{bucket}/r/{name}#00000.jpg") == b"0"
        real = type(store).get_range
        monkeypatch.setattr(type(store), "get_range", lambda *a, real=real, sizes=sizes: sizes.append(a[3]) or real(*a))
        monkeypatch.setattr(type(store), "open", lambda *a: pytest.fail("the index is kept"))
        found = fetcher.fetch_many([f"s3://{bucket}/r/{name}#{n:05d}.jpg" for n in range(0, 10_000, 500)])
        monkeypatch.undo()
        assert found == [b"%d" % n for n in range(0, 10_000, 500)] and len(sizes) == 20 and max(sizes) < 2000


def test_strangers_read_members_of_allowed_archives_only(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}")
    for key in ("open/a.zip", "closed/a.zip", "open.zip"):
        store.put(key, zipped({"x y.jpg": key.encode(), "open/z.jpg": b"1"}))
    (tmp_path / "a.zip").write_bytes(zipped({"a.jpg": b"local"}))
    config = ImagesConfig.model_validate({"addresses": [f"s3://{bucket}/open/", f"s3://{bucket}/open.zip#open/"]})
    fetcher = GuardedFetcher(config, concurrency=2, retries=0)
    assert fetcher.fetch(f"s3://{bucket}/open/a.zip#x y.jpg") == b"open/a.zip"
    refused = {
        f"s3://{bucket}/closed/a.zip#x y.jpg": "bad_uri",
        f"s3://{bucket}/closed/a.zip#open/z.jpg": "forbidden",
        f"s3://{bucket}/open/../closed/a.zip#open/z.jpg": "forbidden",
        f"s3://{bucket}/open/%2e%2e/closed/a.zip#open/z.jpg": "forbidden",
        f"s3://{bucket}/open.zip#open/z.jpg": "missing",  # an archive that is not allowed itself
        f"s3://{bucket}/open/a.zip#no.jpg": "missing",
        f"{tmp_path}/a.zip#a.jpg": "bad_uri",
        f"file://{tmp_path}/a.zip#a.jpg": "bad_uri",
        "http://127.0.0.1:9/a.zip#a.jpg": "forbidden",
    }
    assert [kind(each) for each in fetcher.fetch_many(list(refused))] == list(refused.values())
