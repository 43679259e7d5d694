"""What processes of a disturbed run note, and the parts of such a run. It imports little: scripted replicas use it."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from paliscribe.results import layout


class Notes:
    """A file of JSON lines, whole up to the moment in which its process is killed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, **values: Any) -> None:
        line = json.dumps({"at": time.monotonic(), "pid": os.getpid()} | values) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)


def read(log: Path) -> list[dict[str, Any]]:
    """The notes of drivers, in order."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def small_parts(patch: pytest.MonkeyPatch) -> None:
    """Parts of two shards."""
    patch.setattr(layout, "PART_RECORDS", 8)
