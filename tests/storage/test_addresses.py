"""Addresses: which store they name, how they split and join, and what of them is shown."""

import subprocess
import sys
from pathlib import Path

import pytest

from paliscribe.storage import StorageError, open_store, redacted, resolve, split


@pytest.mark.parametrize(
    ("uri", "store"),
    [
        ("s3://b", "s3://b"),
        ("s3://b/p/q/", "s3://b/p/q"),
        ("http://h/p/", "http://h/p"),
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("file://localhost/tmp", "/tmp"),
        ("file:/tmp/a%20b", "/tmp/a b"),
        ("FILE:/tmp", "/tmp"),
        ("s3a://b/p", "s3://b/p"),
        ("s3n://b/p", "s3://b/p"),
        ("s3://b//p", "s3://b//p"),
        ("/tmp/a%20b", "/tmp/a%20b"),
        ("some", str(Path.cwd() / "some")),
        ("~/x", str(Path.home() / "x")),
    ],
)
def test_open(uri: str, store: str) -> None:
    assert open_store(uri).uri == store


@pytest.mark.parametrize("uri", ["gs://b/k", "s3://", "s3:///k", "file://elsewhere/tmp", "://x"])
def test_bad_addresses(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(uri)
    assert caught.value.kind == "bad_uri"


@pytest.mark.parametrize(
    ("uri", "folder", "name"),
    [
        ("s3://b/k/m.jsonl", "s3://b/k", "m.jsonl"),
        ("s3://b/m.jsonl", "s3://b", "m.jsonl"),
        ("s3://b", "s3://b", ""),
        ("s3://b/k?/m", "s3://b/k?", "m"),
        ("s3://b//m", "s3://b", "/m"),
        ("s3://b/k//m", "s3://b/k", "/m"),
        ("s3://b//k/m", "s3://b//k", "m"),
        ("file:/a%20b/m.csv", "/a b", "m.csv"),
        ("http://h/a/m.csv?sig=a/b", "http://h/a", "m.csv?sig=a/b"),
        ("/a/m.csv", "/a", "m.csv"),
        ("file:///a%20b/m.csv", "/a b", "m.csv"),
        ("m.csv", str(Path.cwd()), "m.csv"),
    ],
)
def test_split(uri: str, folder: str, name: str) -> None:
    assert split(uri) == (folder, name)


@pytest.mark.parametrize(
    ("reference", "folder", "address"),
    [
        ("1.jpg", "s3://b/k", "s3://b/k/1.jpg"),
        ("1.jpg", "s3://b", "s3://b/1.jpg"),
        ("./1.jpg", "s3://b/k", "s3://b/k/1.jpg"),
        ("../img//1.jpg", "s3://b/k", "s3://b/img/1.jpg"),
        ("a/../1.jpg", "http://h/k/", "http://h/k/1.jpg"),
        ("a//1.jpg", "s3://b/k", "s3://b/k/a//1.jpg"),
        ("./1.jpg", "/data", "/data/1.jpg"),
        ("../1.jpg", "/data", "/data/../1.jpg"),
        ("/abs/1.jpg", "s3://b/k", "/abs/1.jpg"),
        ("s3://o/1.jpg", "/data", "s3://o/1.jpg"),
        ("file:/o/1.jpg", "/data", "file:/o/1.jpg"),
        ("1.jpg", "file:/data", "file:///data/1.jpg"),
    ],
)
def test_resolve(reference: str, folder: str, address: str) -> None:
    assert resolve(reference, folder) == address


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@h:1/p?X-Amz-Signature=secret#secret", "https://h:1/p?..."),
        ("https://h?sig=secret", "https://h?..."),
        ("s3://key:secret@b/k", "s3://b/k"),
        ("s3://b/k?1#2", "s3://b/k?1#2"),
        ("http://[", "http://["),
        ("/a?b", "/a?b"),
        ("file:/a?b", "file:/a?b"),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == shown == redacted(redacted(uri))


def test_the_import_is_light() -> None:
    code = "import sys, paliscribe.storage; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"boto3", "botocore", "httpx", "pyarrow", "numpy"} & set(loaded)
