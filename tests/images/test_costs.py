"""Files that take long, or much memory, to decode: bounded, and each one's own dead letter."""

import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from images.files import chunk, empty_scans, encoded, inserted, photo
from PIL import Image

from paliscribe.errors import RowError
from paliscribe.images import apart
from paliscribe.images.apart import Limits
from paliscribe.images.cheap import is_cheap
from paliscribe.images.decode import decode

SIZE = 28
SMALL = Limits(seconds=1.0, memory=2**28)


def outcome(data: bytes, **options: object) -> str:
    try:
        decode(data, SIZE, **options)  # type: ignore[arg-type]
    except RowError as error:
        return error.kind
    return "ok"


def blank_png(width: int, height: int, bits: int = 1, colour: int = 0) -> bytes:
    row = bytes(1 + (width * bits * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8)
    packer = zlib.compressobj(1)
    body = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def blank(form: str, side: int, mode: str = "RGB") -> bytes:
    options = {"method": 0} if form == "WEBP" else {"speed": 10} if form == "AVIF" else {}
    return encoded(Image.new(mode, (side, side)), form, **options)


COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans of 49 million pixels": (lambda: empty_scans(7000, 1000), "too_costly"),
    "a line": (lambda: blank_png(68_000_000, 1), "too_many_pixels"),
    "a column": (lambda: blank_png(1, 1_000_001), "too_many_pixels"),
    "a long line": (lambda: blank_png(900_000, 1), "ok"),
    "transparent PNG": (lambda: blank_png(8000, 8000, 8, 6), "too_costly"),
    "WebP": (lambda: blank("WEBP", 5000), "too_costly"),
    "JPEG 2000": (lambda: blank("JPEG2000", 5000), "too_costly"),
    "GIF": (lambda: blank("GIF", 9000, "P"), "too_costly"),
    "comments before the sizes": (lambda: b"P1\n" + b"#\n" * 1_000_000 + b"2 2\n0 1 0 1\n", "ok"),
    "comments between samples": (lambda: b"P1\n2 2\n0 1 " + b"#\n" * 1_000_000 + b"0 1\n", "ok"),
    "an odd depth": (lambda: b"P6\n2500 2500\n254\n" + bytes(2500 * 2500 * 3), "ok"),
    "chunks": (lambda: inserted(encoded(photo()), chunk(b"teSt", b"") * 400_000), "ok"),
    "Exif": (lambda: inserted(encoded(photo()), chunk(b"eXIf", wide_exif())), "ok"),
}


def wide_exif() -> bytes:
    """A directory whose every entry holds the whole file."""
    entries = b"".join(struct.pack(">HHII", 0x9000 + n % 1000, 1, 4_000_000, 8) for n in range(60_000))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + entries + bytes(4_000_000)


@pytest.mark.parametrize("name", COSTLY)
def test_hostile_files_are_bounded(name: str) -> None:
    make, wanted = COSTLY[name]
    data = make()
    begun = time.monotonic()
    assert outcome(data, limits=SMALL) == wanted
    assert time.monotonic() - begun < 8


def test_decoding_that_takes_longer_than_the_limit_is_ended() -> None:
    """A tenth of what a fast processor takes; the scans are too few for what is refused by the header."""
    with pytest.raises(RowError, match=r"takes more than 0\.1 s of processor time") as raised:
        decode(blank_png(7000, 7000, 8, 2), SIZE, limits=Limits(seconds=0.1, memory=2**30))
    assert raised.value.kind == "too_costly"
    assert outcome(empty_scans(2000, 450), limits=SMALL) in ("too_costly", "ok")  # about a second: as the processor is


ORDINARY = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "AVIF")


def test_ordinary_images_are_decoded_in_this_process() -> None:
    for form in ORDINARY:
        assert is_cheap(encoded(photo(600, 400), form)), form
    assert is_cheap(encoded(photo(600, 400), "JPEG", progressive=True))
    assert is_cheap(encoded(photo(600, 400).convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*"))
    for data in (b"", b"P", b"RIFF", b"GIF89a", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 "):
        assert [is_cheap(data + fill * 30) for fill in (b"\0", b"\xff")][1] is False


def test_the_same_pixels_in_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [encoded(photo(600, 400), form) for form in ORDINARY]
    here = [decode(data, SIZE) for data in pictures]
    monkeypatch.setattr("paliscribe.images.decode.is_cheap_of", lambda kind, data: False)
    for one, data in zip(here, pictures, strict=True):
        other = decode(data, SIZE)
        assert (one.pixels == other.pixels).all()
        assert (one.width, one.height, one.sha256) == (other.width, other.height, other.sha256)


def test_memory_in_this_process_is_a_dead_letter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("paliscribe.images.pixels._decoded", fail)
    assert outcome(encoded(photo())) == "too_costly"


def test_a_timeout_ends_the_wait() -> None:
    data = empty_scans(2000, 900)
    begun = time.monotonic()
    assert outcome(data, timeout=0.5) == "expired"
    assert time.monotonic() - begun < 2
    assert outcome(encoded(photo(), "JPEG2000")) == "ok"


def test_waiting_for_a_process_has_a_timeout_too() -> None:
    data = empty_scans(2000, 900)
    slow = [threading.Thread(target=outcome, args=(data,), kwargs={"timeout": 2.0}) for _ in range(apart.PROCESSES)]
    for thread in slow:
        thread.start()
    time.sleep(0.3)
    begun = time.monotonic()
    assert outcome(encoded(photo(), "JPEG2000"), timeout=0.3) == "expired"
    assert time.monotonic() - begun < 1
    for thread in slow:
        thread.join()
    assert outcome(encoded(photo(), "JPEG2000")) == "ok"


def test_a_process_that_ended_is_replaced() -> None:
    data = encoded(photo(), "JPEG2000")
    assert outcome(data) == "ok" and apart._idle
    for process in apart._idle:
        process._process.kill()
        process._process.wait()
    assert outcome(data) == "ok"


def test_processes_are_kept_and_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    for process in list(apart._idle):
        process.end()
    apart._idle.clear()
    for _ in range(3):
        assert outcome(encoded(photo(), "JPEG2000")) == "ok"
    [process] = apart._idle
    assert b"hidden" not in Path(f"/proc/{process._process.pid}/environ").read_bytes()
