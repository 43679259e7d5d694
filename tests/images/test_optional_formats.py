"""HEIC and JPEG XL: read where their libraries are installed, and named where they are not."""

import numpy as np
import pytest
from images.files import encoded, photo
from PIL import Image

from paliscribe.errors import RowError
from paliscribe.images import formats
from paliscribe.images.decode import decode

SIZE = 28
STARTS = {
    "HEIF": [
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(40),
    ],
    "JXL": [b"\xff\x0a" + bytes(40), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)],
}


@pytest.mark.parametrize("form", STARTS)
def test_without_the_library_they_are_unsupported(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "is_installed", lambda name: False)
    for data in STARTS[form]:
        assert formats.recognised(data) == form
        error = formats.refusal(data, OSError())
        assert error.kind == "unsupported" and form in error.message and "paliscribe[formats]" in error.message


@pytest.mark.parametrize("form", STARTS)
def test_with_the_library_they_are_read(form: str) -> None:
    if not formats.is_installed(form):
        pytest.skip(f"the library of {form} is not installed: pip install paliscribe[formats]")
    image = photo(200, 150)
    exact = decode(encoded(image), SIZE).pixels.astype(int)
    data = encoded(image, form, quality=95)
    found = decode(data, SIZE)
    assert (found.width, found.height) == (200, 150) and np.abs(found.pixels - exact).mean() < 3
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(image, form, exif=exif.tobytes()), SIZE)
    assert (turned.width, turned.height) == (150, 200)
    for broken in (data[: len(data) // 2], *STARTS[form]):
        with pytest.raises(RowError) as caught:
            decode(broken, SIZE)
        assert caught.value.kind == "corrupt"
