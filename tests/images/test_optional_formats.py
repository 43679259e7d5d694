"""HEIC and JPEG XL: read where their libraries are installed, and named where they are not."""

import os
import subprocess
import sys
from pathlib import Path

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


DECODE = """
import sys
from paliscribe.images.formats import recognised
from paliscribe.images.pixels import Options, decode_here

data = open(sys.argv[1], "rb").read()
for _ in range(5):
    assert decode_here(data, Options(28, 10**8), recognised(data))[1:] == (1600, 1200)
"""


@pytest.mark.parametrize("form", ["AVIF", *STARTS])
def test_an_image_takes_no_thread_for_each_core(form: str, tmp_path: Path) -> None:
    """Their stacks would not fit the memory that one image may have on a large machine."""
    if form in STARTS and not formats.is_installed(form):
        pytest.skip(f"the library of {form} is not installed: pip install paliscribe[formats]")
    file = tmp_path / "image"
    file.write_bytes(encoded(photo(1600, 1200), form))
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", DECODE, str(file)], env=alone)
    most = 1
    while process.poll() is None:
        most = max(most, len(list(Path(f"/proc/{process.pid}/task").glob("*"))))
    assert process.returncode == 0 and most <= (2 if form == "HEIF" else 1), "one more: of its codec, on any machine"
