"""Pictures of a report: a thumbnail of each image, with boxes and masks over it as SVG."""

import base64
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from paliscribe.config import FetchConfig
from paliscribe.errors import RowError
from paliscribe.images.decode import Limits, decode
from paliscribe.images.fetch import Fetcher
from paliscribe.storage.http import Headers
from paliscribe.storage.parallel import in_order
from paliscribe.storage.retry import hurried
from paliscribe.view.plots import escaped
from paliscribe.view.samples import Found

SIDE: Final = 360  # pixels of a thumbnail's longer side
THREADS: Final = 4  # images that are read at the same time
QUALITIES, BYTES = (82, 60, 35), 48_000  # of a thumbnail: the first with which it is small enough, else the last
COLOURS: Final = 8  # classes of boxes: c0 to c7
MASK_SIDE: Final = 180  # pixels of a mask's longer side in a picture
LETTERS, LETTER = 40, 7.0  # of a box's label at most, and width of one, about


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, or why there is none. `url`: of its thumbnail, a data URL. `width`, `height`: pixels of a thumbnail.

    `note`: words for the reader: why it cannot be shown, or that it is no longer the image that was annotated.
    """

    url: str | None
    width: int
    height: int
    note: str = ""


class Pictures:
    """Reads images as a run does: with its limits, headers and credentials, but without its patience."""

    def __init__(self, fetch: FetchConfig) -> None:
        headers = Headers.of(fetch.user_agent, fetch.headers)
        self._fetch = fetch
        self._fetcher = Fetcher(
            concurrency=THREADS, retries=1, timeout=min(15.0, fetch.timeout), max_bytes=fetch.max_bytes, headers=headers
        )

    def of(self, groups: Iterable[list[Found]]) -> Iterator[tuple[list[Found], Picture]]:
        """Each group of records of one image, with its picture, in order; a few are read ahead."""
        return in_order(lambda records: (records, self._picture(records)), groups, THREADS)

    def _picture(self, records: Sequence[Found]) -> Picture:
        """The picture of records. An image that the run did not get either is not asked for again."""
        seen = next((record for record in records if record["width"] and record["height"]), None)
        if seen is None:
            return Picture(None, SIDE, SIDE * 3 // 4, next(filter(None, (r["error_message"] for r in records)), ""))
        width, height = _within(seen["width"], seen["height"], SIDE)
        if not seen["image"]:
            return Picture(None, width, height, "the run names no address of this image")
        most = self._fetch
        try:
            with hurried():
                data = self._fetcher.fetch(seen["image"])
            limits = Limits(most.decode_seconds, most.decode_memory)
            found = decode(data, max(width, height), max_pixels=most.max_pixels, draft=True, limits=limits)
        except RowError as error:
            return Picture(None, width, height, f"the image cannot be shown: {error.message}")
        changed = seen["image_sha256"] not in (None, found.sha256)
        note = "the image is not the one that was annotated: its bytes have changed" if changed else ""
        return Picture(_jpeg(found.pixels, width, height), width, height, note)


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    """A size with the same ratio, of which no side is longer; smaller ones stay."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _jpeg(pixels: npt.NDArray[np.uint8], width: int, height: int) -> str:
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def colouring(labels: Sequence[str]) -> Callable[[str], int]:
    """A function from a label to its colour, from 0 to 7: the most frequent `labels` have different ones."""
    known = {label: place % COLOURS for place, label in enumerate(labels)}
    return lambda label: known.get(label, zlib.crc32(label.encode("utf-8", "replace")) % COLOURS)


def drawn(picture: Picture, records: Iterable[Found], colour: Callable[[str], int]) -> str:
    """The picture with the masks and boxes of its records, as SVG whose units are pixels of the thumbnail."""
    width, height = picture.width, picture.height
    parts = [f'<rect class="gone" width="{width}" height="{height}"/>']
    if picture.url is not None:
        parts = [f'<image href="{picture.url}" width="{width}" height="{height}" preserveAspectRatio="none"/>']
    answered = [record for record in records if record["width"] and record["height"]]
    for record in answered:
        for mask in record["masks"] or ():
            parts.append(_mask(mask, width, height, colour(mask["label"] or "")))
    names = []
    for record in answered:
        scale = width / record["width"], height / record["height"]
        for box in record["boxes"] or ():
            shape, name = _box(box, scale, width, colour(box["label"] or ""))
            parts.append(shape)
            names.append(name)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="picture" role="img" {size}>{"".join(parts + names)}</svg>'


def _box(box: dict[str, Any], scale: tuple[float, float], room: int, colour: int) -> tuple[str, str]:
    """A box and its label. `room`: width of the picture."""
    left, top = box["x_min"] * scale[0], box["y_min"] * scale[1]
    width, height = (box["x_max"] - box["x_min"]) * scale[0], (box["y_max"] - box["y_min"]) * scale[1]
    words = label_words(box)
    place = f'x="{left:.1f}" y="{top:.1f}" width="{max(0.5, width):.1f}" height="{max(0.5, height):.1f}"'
    shape = f'<rect class="box c{colour}" {place}><title>{escaped(words)}</title></rect>'
    start = max(2, min(left + 3, room - LETTER * len(words)))
    at = f'x="{start:.1f}" y="{max(11, top + 12):.1f}"'
    return shape, f'<text class="label" {at}>{escaped(words)}</text>'


def label_words(box: dict[str, Any]) -> str:
    """The label of a box with its score."""
    label = box["label"] or ""
    label = label if len(label) <= LETTERS else f"{label[: LETTERS - 1]}…"
    return label if box["score"] is None else f"{label} {box['score']:.0%}".strip()


def _mask(mask: dict[str, Any], width: int, height: int, colour: int) -> str:
    """A mask as the outlines of its runs in each line; nothing without pixels, which only a mask decoder gives."""
    if not mask["rle"] or not mask["width"] or not mask["height"]:
        return ""
    across, down = _within(mask["width"], mask["height"], MASK_SIDE)
    area = sampled_mask(mask["rle"], mask["height"], mask["width"], down, across)
    if area is None:
        return ""
    path = "".join(f"M{start} {row}h{end - start}v1h{start - end}z" for row, start, end in _runs(area))
    return f'<path class="mask c{colour}" transform="scale({width / across:.4f} {height / down:.4f})" d="{path}"/>'


def sampled_mask(
    counts: Sequence[int], height: int, width: int, down: int, across: int
) -> npt.NDArray[np.bool_] | None:
    """A mask at bool [down, across] of its pixels, from COCO run lengths, in memory for these only.

    None if the counts are not those of a mask of height x width.
    """
    ends = np.cumsum(np.asarray(counts, np.int64))
    if (np.asarray(counts) < 0).any() or ends[-1] != height * width:
        return None
    columns = (np.arange(across) * 2 + 1) * width // (2 * across)
    rows = (np.arange(down) * 2 + 1) * height // (2 * down)
    found: npt.NDArray[np.bool_] = np.searchsorted(ends, columns[None] * height + rows[:, None], side="right") % 2 == 1
    return found


def _runs(area: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Row, start and end of each run of true pixels."""
    edges = np.diff(np.pad(area, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    for (row, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
        yield row, start, end
