"""Data URLs: images that stand in their own address."""

import base64
from urllib.parse import quote

import pyarrow as pa
import pytest

from paliscribe.errors import RowError
from paliscribe.images.fetch import Fetcher
from paliscribe.manifest.columns import resolved
from paliscribe.storage import resolve
from paliscribe.storage.inline import decoded, is_inline, shortened

PLAIN = base64.b64encode(b"bytes of an image").decode()


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", "data:image/jpeg;charset=x;base64,"])
def test_bytes_come_back(head: str) -> None:
    assert decoded(head + PLAIN) == b"bytes of an image"
    assert Fetcher().fetch(head + PLAIN) == b"bytes of an image"


ODD = bytes(range(256))  # all letters of base64, and padding
BASE64, SAFE = base64.b64encode(ODD).decode(), base64.urlsafe_b64encode(ODD).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/png;base64,{base64.encodebytes(ODD).decode()}",
        "data:image/png;base64,\r\n" + base64.encodebytes(ODD).decode().replace("\n", "\r\n"),
        f"data:image/png;base64,{SAFE}",
        f"data:image/png;base64,{SAFE.rstrip('=')}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{quote(BASE64)}",
        f"data:image/png;base64,{quote(BASE64, safe='')}",
        f"data:image/png,{quote(ODD)}",
        f'data:image/png;name="a, b;c.png";base64,{BASE64}',
        f"data:image/png;name=a%20b.png;charset=utf-8;base64,{BASE64}",
        f"data:image%2Fpng;base64,{BASE64}",
        f"data:image/png; base64, {BASE64}",
        f'"data:image/png;base64,{BASE64}"',
        f" data:image/png;base64,{BASE64}\n",
        f"data:;base64,{BASE64}",
        f"data:binary/octet-stream;base64,{BASE64}",
    ],
)
def test_spellings(url: str) -> None:
    assert is_inline(url) and decoded(url) == ODD == Fetcher().fetch(url)
    assert resolve(url, "/folder") == url and len(shortened(url)) < 100
    [row] = resolved(pa.array([url.strip()]), "/folder").to_pylist()  # as a manifest's column
    assert row == url.strip()


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("data:image/png,plain", "bad_uri"),
        ("data:image/png;base64,%%%", "bad_uri"),
        ("data:image/png;base64,QUJDR", "bad_uri"),
        ("data:", "bad_uri"),
        (f"data:text/html;base64,{PLAIN}", "not_an_image"),
    ],
)
def test_what_is_none_is_refused(url: str, kind: str) -> None:
    with pytest.raises(RowError) as caught:
        decoded(url)
    assert caught.value.kind == kind


@pytest.mark.parametrize("url", [f"data:image/png;base64,{PLAIN}", f"data:image/png,{quote(ODD)}"])
def test_large_ones_are_refused_as_other_images_are(url: str) -> None:
    size = len(decoded(url))
    assert len(Fetcher(max_bytes=size).fetch(url)) == size
    [found] = Fetcher(max_bytes=size - 1).fetch_many([url])
    assert isinstance(found, RowError) and (found.kind, found.message[:14]) == ("too_large", "the image has ")


def test_results_name_them_without_their_data() -> None:
    url = f"data:image/png;base64,{PLAIN}"
    assert shortened(url) == "data:image/png;base64,..." and shortened("data:odd") == "data:..."
    assert shortened("s3://b/k.png") == "s3://b/k.png"
    assert is_inline("DATA:image/png;base64,") and not is_inline("data/one.png")
    assert resolve(url, "/folder") == url and resolve("data/one.png", "/folder") == "/folder/data/one.png"
