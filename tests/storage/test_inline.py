"""Data URLs: images that stand in their own address."""

import base64

import pytest

from paliscribe.errors import RowError
from paliscribe.images.fetch import Fetcher
from paliscribe.storage import resolve
from paliscribe.storage.inline import decoded, is_inline, shortened

PLAIN = base64.b64encode(b"bytes of an image").decode()


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", "data:image/jpeg;charset=x;base64,"])
def test_bytes_come_back(head: str) -> None:
    assert decoded(head + PLAIN) == b"bytes of an image"
    assert Fetcher().fetch(head + PLAIN) == b"bytes of an image"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("data:image/png,plain", "bad_uri"),
        ("data:image/png;base64,%%%", "bad_uri"),
        ("data:image/png;base64,QUJ", "bad_uri"),
        ("data:", "bad_uri"),
        (f"data:text/html;base64,{PLAIN}", "not_an_image"),
    ],
)
def test_what_is_none_is_refused(url: str, kind: str) -> None:
    with pytest.raises(RowError) as caught:
        decoded(url)
    assert caught.value.kind == kind


def test_results_name_them_without_their_data() -> None:
    url = f"data:image/png;base64,{PLAIN}"
    assert shortened(url) == "data:image/png;base64,..." and shortened("data:odd") == "data:..."
    assert shortened("s3://b/k.png") == "s3://b/k.png"
    assert is_inline("DATA:image/png;base64,") and not is_inline("data/one.png")
    assert resolve(url, "/folder") == url and resolve("data/one.png", "/folder") == "/folder/data/one.png"
