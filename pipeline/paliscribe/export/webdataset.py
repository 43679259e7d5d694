"""WebDataset: tar files of samples, each a picture and a JSON file of its answers."""

import io
import tarfile
from typing import Any

from paliscribe.export.base import Format, Run
from paliscribe.export.pictures import Picture
from paliscribe.export.target import Target
from paliscribe.published.query import json_line

MOST_SAMPLES, MOST_BYTES = 10_000, 2**30  # of a tar file


class WebDataset:
    """Writes `shard-000000.tar` and so on."""

    def __init__(self, target: Target, run: Run) -> None:
        self._target = target
        self._number = self._samples = self._bytes = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, picture: Picture) -> None:
        """See Writer."""
        if self._tar is None:
            self._path = self._target.scratch()
            self._tar = tarfile.open(self._path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `_end`
        if picture.data is not None:
            self._member(f"{picture.stem}{picture.suffix}", picture.data)
        self._member(f"{picture.stem}.json", json_line(sample(picture)).encode())
        self._samples += 1
        if self._samples >= MOST_SAMPLES or self._bytes >= MOST_BYTES:
            self._end()

    def close(self) -> None:
        """See Writer."""
        if self._tar is not None:
            self._end()

    def _member(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._bytes += len(data)

    def _end(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._target.upload(f"shard-{self._number:06d}.tar", self._path)
        self._tar, self._number, self._samples, self._bytes = None, self._number + 1, 0, 0


ANSWER = ("task", "kind", "prompt", "status", "text", "score", "boxes", "masks")  # columns that answers keep


def sample(picture: Picture) -> dict[str, Any]:
    """A picture with its answers as JSON."""
    return {
        "id": picture.id,
        "image": picture.image,
        "width": picture.width or None,
        "height": picture.height or None,
        "columns": dict(picture.columns),
        "annotations": [
            {name: answer.record[name] for name in ANSWER} | {"review": answer.review} for answer in picture.answers
        ],
    }


FORMAT = Format(
    "`shard-000000.tar` and so on: for each picture a JSON file of its answers, and the picture with `--images`",
    "webdataset",
    WebDataset,
    folder=None,
)
