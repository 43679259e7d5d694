"""Draws an answer on its picture: boxes, masks and text."""

import os
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from paliscribe.errors import UsageError
from paliscribe.grammar.masks import decode_rle
from paliscribe.images.decode import decode
from paliscribe.records import Record

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIDE = 2048  # pixels of a picture's longer side at most
SMALLEST = 320  # and of its width at least, so that text can be read
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
OPACITY = 0.45  # of masks
PAPER, INK = "#ffffff", "#000000"  # of the strip with the text


def check_file(path: Path) -> None:
    """Raise UsageError if a picture cannot be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--save {path}: a picture is named {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise UsageError(f"--save {path}: a folder where a file should be")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--save {path}: no folder {path.absolute().parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageError(f"--save {path}: no permission to write there")


def has_display() -> bool:
    """Whether a viewer could open on this machine."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_viewer(picture: Image.Image) -> None:
    """Open a picture in the system's viewer."""
    from PIL import ImageShow  # imports IPython where it is installed

    if not ImageShow.show(picture, "paliscribe"):
        print("note: no viewer is installed to show the picture with; --save FILE writes it", file=sys.stderr)


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of its name. Raises UsageError."""
    try:
        picture.save(path)
    except OSError as error:
        raise UsageError(f"--save {path}: {error.strerror or error}") from None


def drawn(data: bytes, record: Record) -> Image.Image:
    """The picture as the model saw it, with the answer; boxes and masks in place, text on a strip below.

    `data`: the encoded image of a record that has been answered.
    """
    width, height = record.width or 1, record.height or 1
    scale = min(1.0, SIDE / max(width, height))
    scale = max(scale, min(SMALLEST / width, SIDE / max(width, height)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.fromarray(decode(data, max(size)).pixels)
    picture = square.resize(size, Image.Resampling.LANCZOS)
    colours = {label: COLOURS[n % len(COLOURS)] for n, label in enumerate(dict.fromkeys(b.label for b in record.boxes))}
    for mask in record.masks:
        if mask.rle is not None:
            area = Image.fromarray(decode_rle(mask.rle, height, width).astype(np.uint8) * round(255 * OPACITY))
            picture.paste(ImageColor.getrgb(colours.get(mask.label, COLOURS[0])), mask=area.resize(size))
    font = ImageFont.load_default(max(12.0, min(size) / 28))
    draw = ImageDraw.Draw(picture)
    for box in record.boxes:
        corners = tuple(side * scale for side in (box.x_min, box.y_min, box.x_max, box.y_max))
        draw.rectangle(corners, outline=colours[box.label], width=max(2, round(min(size) / 150)))
    for box in record.boxes:  # above all boxes
        words = box.label if box.score is None else f"{box.label} {box.score:.0%}".strip()
        _label(draw, (box.x_min * scale, box.y_min * scale), words, colours[box.label], font, size)
    return _with_strip(picture, record.task, "" if record.boxes else record.text or "(nothing found)", font)


def _label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    words: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A label on its colour at the upper left corner of a box, within the picture."""
    _, _, right, bottom = draw.textbbox((0, 0), words, font=font)
    x = max(0.0, min(corner[0], size[0] - (right + 6)))
    y = max(0.0, corner[1] - (bottom + 4))
    draw.rectangle((x, y, x + right + 6, y + bottom + 4), fill=colour)
    draw.text((x + 3, y + 2), words, fill=PAPER, font=font)


def _with_strip(
    picture: Image.Image, task: str, words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """The picture above a strip with the task and the text of the answer."""
    letter = font.getbbox("e")[2]
    columns = max(8, int((picture.width - 16) / letter))
    lines = textwrap.wrap(task, columns) + [
        line for part in words.splitlines() for line in textwrap.wrap(part, columns)
    ]
    pitch = round(font.getbbox("Åg")[3] * 1.35)
    whole = Image.new("RGB", (picture.width, picture.height + pitch * len(lines) + 12), PAPER)
    whole.paste(picture)
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        colour = "#666666" if number < len(textwrap.wrap(task, columns)) else INK
        draw.text((8, picture.height + 6 + number * pitch), line, fill=colour, font=font)
    return whole
