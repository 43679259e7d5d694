"""Copies of the pictures in an export: fetched as a run fetches them, checked, and named."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

from paliscribe import manifest
from paliscribe.config import FetchConfig
from paliscribe.errors import RowError
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.images.fetch import Fetcher
from paliscribe.images.formats import recognised
from paliscribe.published.query import json_line
from paliscribe.results.run_file import RunFile
from paliscribe.storage import Store
from paliscribe.storage.http import Headers
from paliscribe.storage.inline import is_inline

TOGETHER = 16  # pictures that are fetched at the same time, and in memory
FAILED = "failed-images.jsonl"
NAMED = 10  # pictures that are named at the end; the file has all
SUFFIXES = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "PPM": ".ppm",
    "JPEG2000": ".jp2",
    "AVIF": ".avif",
    "HEIF": ".heic",
    "JXL": ".jxl",
}


class Copies:
    """Fetches the pictures of an export with the limits of the run. `failed`: how many cannot be read.

    `named`: the first of them, with the reason; all are in the file `FAILED` of the export. `folder`: where the copies
    go; None: their bytes stay with the pictures.
    """

    def __init__(self, target: Target, output: Store, folder: str | None) -> None:
        run = RunFile.read(output)
        fetch = run.job.fetch if run is not None else FetchConfig()
        self._fetcher = Fetcher(
            concurrency=min(fetch.concurrency, TOGETHER),
            retries=fetch.retries,
            timeout=fetch.timeout,
            max_bytes=fetch.max_bytes,
            headers=Headers.of(fetch.user_agent, fetch.headers),
        )
        self._target, self._output, self._folder = target, output, folder
        self._inline: tuple[int, dict[int, str | None]] = (-1, {})
        self._shards: manifest.Shards | None = None
        self._list = target.lines(FAILED)
        self.failed = 0
        self.named: list[str] = []

    def of(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """The pictures with their copies; those that cannot be read are left out and listed."""
        coming = iter(pictures)
        while some := list(islice(coming, TOGETHER)):
            found = self._fetcher.fetch_many([self._address(picture) for picture in some])
            for picture, data in zip(some, found, strict=True):
                checked = _checked(picture, data)
                if isinstance(checked, RowError):
                    self._note(picture, checked)
                    continue
                data, picture.suffix = checked
                if self._folder is None:
                    picture.data = data
                else:
                    picture.file = f"{self._folder}/{picture.stem}{picture.suffix}"
                    self._target.put(picture.file, data)
                yield picture
                picture.data = None

    def close(self) -> None:
        """Write the list of failures, if there are any."""
        if self.failed:
            self._list.close()

    def _note(self, picture: Picture, error: RowError) -> None:
        self.failed += 1
        if len(self.named) < NAMED:
            self.named.append(f"{picture.id[:100]}: {error.kind}: {error.message[:200]}")
        said = {"id": picture.id, "image": picture.image, "error_kind": error.kind, "error_message": error.message}
        self._list.write(f"{json_line(said)}\n")

    def _address(self, picture: Picture) -> str:
        """The address of a picture. Results do not have the data of data URLs; the frozen manifest has."""
        if picture.image is None or not is_inline(picture.image):
            return picture.image or ""
        if self._inline[0] != picture.shard:
            self._shards = self._shards or manifest.Shards(self._output)
            self._inline = picture.shard, {row.row: row.image for row in self._shards.read(picture.shard)}
        return self._inline[1].get(picture.row) or ""


def _checked(picture: Picture, data: bytes | RowError) -> tuple[bytes, str] | RowError:
    """The bytes and the suffix of a picture, or why it cannot be copied."""
    if isinstance(data, RowError):
        return data
    if picture.sha256 is not None and hashlib.sha256(data).hexdigest() != picture.sha256:
        return RowError("changed", "the image is another one than when it was annotated")
    suffix = SUFFIXES.get(recognised(data) or "")
    return (data, suffix) if suffix else RowError("not_an_image", "no image format is recognised in these bytes")
