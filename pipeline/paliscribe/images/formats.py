"""Image formats: which are read, how others are recognised, and what is said of a file that is not read."""

import io
import re
from functools import cache
from importlib import import_module
from typing import Final, Literal

from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError

from paliscribe.errors import RowError
from paliscribe.images import jpeg

Image.init()
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # by default as many as the machine has cores, whose stacks are memory
READ: Final = {  # Pillow's name: what is read of it, and what is not
    "JPEG": "baseline and progressive; grey, RGB and CMYK of 8 bits. Not: 12 and 16 bits, JPEG-LS",
    "PNG": "all colour types and depths; of an animation the default image",
    "WEBP": "lossy, lossless, transparent; of an animation the first frame",
    "GIF": "the first frame",
    "BMP": "1 to 32 bits, RLE. Not: JPEG and PNG inside",
    "TIFF": "the first page. Grey: 1, 2, 4, 8, 12, 16 and 32 bits, floats. RGB and CMYK: 8 and 16 bits. Palettes, "
    "YCbCr, Lab. Strips and tiles, and the compressions of libtiff; BigTIFF. Not: more bands, RGB of floats, "
    "big-endian BigTIFF",
    "PPM": "PBM, PGM, PPM (P1 to P6, any depth) and grey PFM. Not: PAM, coloured PFM",
    "JPEG2000": "files (.jp2) and codestreams (.j2k); grey and RGB, with or without transparency",
    "AVIF": "8 to 12 bits, transparent; of a sequence the first frame",
    "HEIF": "HEIC photographs; with the extra `formats`",
    "JXL": "JPEG XL; with the extra `formats`",
}
PLUGINS: Final = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
FORMATS: Final = tuple(name for name in READ if name not in PLUGINS and name in Image.OPEN)  # MPO opens as JPEG
AVIF_BRANDS: Final = (b"avif", b"avis")
HEIF_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2", b"miaf")
SIGNATURES: Final = [  # name, pattern of the first bytes, without groups that capture
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8[79]a"),
    ("TIFF", rb"II[*+]\x00|MM\x00[*+]"),
    ("JPEG2000", rb"\xff\x4f\xff\x51|\x00\x00\x00\x0cjP  \r\n\x87\n"),
    ("JXL", rb"\xff\x0a|\x00\x00\x00\x0cJXL \r\n\x87\n"),
    ("PPM", rb"P[0-6yf]"),
    ("BMP", rb"BM.{8}"),
    ("Photoshop (PSD)", rb"8BPS\x00[\x01\x02]"),
    ("ICO", rb"\x00\x00\x01\x00[^\x00]\x00..\x00"),
    ("CUR", rb"\x00\x00\x02\x00[^\x00]\x00..\x00"),
    ("ICNS", rb"icns\x00"),
    ("QOI", rb"qoif"),
    ("DDS", rb"DDS \x7c\x00\x00\x00"),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance HDR", rb"#\?(?:RADIANCE|RGBE)"),
    ("GIMP (XCF)", rb"gimp xcf "),
    ("DICOM", rb".{128}DICM"),
    ("FITS", rb"SIMPLE  = "),
    ("SGI", rb"\x01\xda[\x00\x01][\x01\x02]\x00[\x01-\x03]"),
    ("Sun raster", rb"\x59\xa6\x6a\x95"),
    ("JPEG XR", rb"II\xbc[\x00\x01]"),
    ("PAM", rb"P7\n"),
    ("coloured PFM", rb"PF\s"),
    ("DjVu", rb"AT&TFORM"),
    ("MNG", rb"\x8a[MJ]NG\r\n\x1a\n"),
    ("BPG", rb"BPG\xfb"),
    ("Fuji raw (RAF)", rb"FUJIFILMCCD-RAW"),
    ("Canon raw (CR3)", rb"....ftypcrx "),
    ("PCX", rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]"),
    ("XBM", rb"#define \w+_width "),
    ("WMF", rb"\xd7\xcd\xc6\x9a"),
    ("EMF", rb"\x01\x00\x00\x00.{36} EMF"),
    ("XPM", rb"/\* XPM \*/"),
    ("SVG", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--[^>]*-->\s*)*(?:<!DOCTYPE svg[^>]*>\s*)?<svg[\s>]"),
]
OTHERS: Final = {  # what is no image, and comes in the place of one
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF-",
    "a web page": rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
    "XML": rb"(\xef\xbb\xbf)?\s*<\?xml",
    "JSON": rb"\s*(\{\s*\"|\[\s*[\[{])",
    "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
    "a ZIP archive": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b\x08",
    "a pointer of Git LFS": rb"version https://git-lfs",
}
OTHER_PATTERNS: Final = [(words, re.compile(pattern, re.DOTALL | re.IGNORECASE)) for words, pattern in OTHERS.items()]
START: Final = 1024  # bytes by which a format is recognised
SIGNATURE: Final = re.compile(b"|".join(b"(%b)" % pattern for _, pattern in SIGNATURES), re.DOTALL)
UNSUPPORTED: Final = re.compile(r"unsupported|not supported|cannot handle|unable to determine|unrecognized", re.I)


def recognised(data: bytes) -> str | None:
    """The name of the format by the first bytes, read or not; None if there is none."""
    if data[4:8] == b"ftyp":
        size = min(max(16, int.from_bytes(data[:4])), START, len(data))
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
        if not brands.isdisjoint(AVIF_BRANDS):
            return "AVIF"
        if not brands.isdisjoint(HEIF_BRANDS):
            return "HEIF"
    found = SIGNATURE.match(data, 0, START)
    if found is not None and found.lastindex:
        return SIGNATURES[found.lastindex - 1][0]
    return "TGA" if _is_tga(data) else None


def _is_tga(data: bytes) -> bool:
    """Whether data ends as TGA 2.0 does, or is an uncompressed TGA 1.0, whose header tells its length."""
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return True
    if len(data) < 18 or (data[1], data[2]) not in {(1, 1), (0, 2), (0, 3)} or data[16] not in {8, 15, 16, 24, 32}:
        return False
    colours = int.from_bytes(data[5:7], "little") * ((data[7] + 7) // 8) if data[1] else 0
    width, height = (int.from_bytes(data[at : at + 2], "little") for at in (12, 14))
    return width * height > 0 and len(data) == 18 + data[0] + colours + width * height * ((data[16] + 7) // 8)


def readable(name: str | None) -> tuple[str, ...]:
    """The formats to try on data of this format. Loads the library that an optional one needs."""
    if name in FORMATS:
        return (name,)  # each try takes time
    return (*FORMATS, name) if name in PLUGINS and is_installed(name) else FORMATS


@cache
def is_installed(name: str) -> bool:
    """Whether Pillow has this format, after its optional library is loaded."""
    if name in PLUGINS:
        try:
            loaded = import_module(PLUGINS[name])
        except ImportError:
            return False
        if name == "HEIF":
            loaded.register_heif_opener(decode_threads=0)  # none beside the caller's
        else:
            loaded.JpegXLImagePlugin.DECODE_THREADS = 0
    return name in Image.OPEN


def refusal(data: bytes, error: Exception) -> RowError:
    """What is said of data that a decoder refused: `not_an_image`, `unsupported` or `corrupt`."""
    name = recognised(data)
    if name is None or len(data) < 16:
        other = next((words for words, pattern in OTHER_PATTERNS if pattern.match(data[:START])), None)
        hint = f"; they look like {other}" if other else ""
        return RowError("not_an_image", f"no image format is recognised in these bytes{hint}")
    if name not in FORMATS and not (name in PLUGINS and is_installed(name)):
        hint = "; install paliscribe[formats]" if name in PLUGINS else ""
        return RowError("unsupported", f"the format {name} is not supported{hint}")
    if (words := _variety(name, data, error)) is not None:
        return RowError("unsupported", f"{words} is not supported")
    if isinstance(error, UnidentifiedImageError):
        return RowError("corrupt", f"the image's header is truncated or corrupt ({name})")
    return RowError("corrupt", f"the image cannot be decoded: {first_line(error)} ({name})")


def _variety(name: str, data: bytes, error: Exception) -> str | None:
    """The variety of a whole file that no decoder reads, in words; None if the file is damaged."""
    if data.startswith(b"MM\0+"):
        return "a big-endian BigTIFF"
    if name == "TIFF":
        return _tiff_variety(data, isinstance(error, UnidentifiedImageError))
    if name == "JPEG":
        head = jpeg.head(data)
        return head.words if head is not None and head.is_unusual else None
    try:
        Image.OPEN[name][0](io.BytesIO(data), "")  # `Image.open` does not say why it refuses
    except Exception as found:
        error = found
    return f"this variety of {name} ({first_line(error)})" if UNSUPPORTED.search(str(error)) else None


def _tiff_variety(data: bytes, is_unknown: bool) -> str | None:
    """See `_variety`. `is_unknown`: whether Pillow has no mode for it."""
    source, is_big = io.BytesIO(data), b"+" in data[2:4]
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(source.read(16 if is_big else 8))
        source.seek(tags.next)
        order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        entries = int.from_bytes(data[tags.next :][: 8 if is_big else 2], order)
        if tags.next + entries * (20 if is_big else 12) > len(data):
            return None
        tags.load(source)
        sides, bits, compression = (tags[256], tags[257]), tags.get(258, (1,)), tags.get(259, 1)
        pieces = zip(tags.get(273) or tags[324], tags.get(279) or tags[325], strict=True)
        if min(sides) < 1 or any(at + length > len(data) for at, length in pieces):
            return None
    except Exception:  # a directory that is cut off or broken raises almost anything
        return None
    known = TiffImagePlugin.COMPRESSION_INFO.get(compression)
    if known is not None and not is_unknown:
        return None
    floats = " of floats" if 3 in tags.get(339, ()) else ""
    kind = f"photometric {tags.get(262)}, compression {known or compression}"
    return f"a TIFF of {len(bits)} x {bits[0]} bits{floats} ({kind})"


def first_line(error: BaseException) -> str:
    """The first line of an error's text without advice to programmers, or its type."""
    text = str(error).strip().splitlines()
    return text[0].partition(". ")[0][:200] if text else type(error).__name__
