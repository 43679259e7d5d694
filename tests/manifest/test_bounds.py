"""One long line, value, name or row group takes bounded memory, and one short line in a message."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe.errors import UsageError
from paliscribe.manifest import blocks, formats, scan
from paliscribe.manifest.naming import Naming


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "m.jsonl")


LONG = "x" * 10**6
ROW = {"id": "a", "image": "a.png"}


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": LONG, "image": "a.png"}] * 2,
        [ROW | {"id": f"{n} {LONG[:1000]}"} for n in range(9)] * 2,
        [{f"column number {n}": 1 for n in range(3000)}],
        [{LONG: 1}],
        [ROW | {LONG: 1, LONG.upper(): 2}],
        [ROW | {f"{case(LONG[:200])} {n}": 1 for n in range(300) for case in (str.upper, str.lower)}],
        [ROW | {"s": LONG + "\ud800"}],
        [ROW | {"image": {LONG: 1}}],
    ],
    ids=range(8),
)
def test_messages_stay_short(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    source = jsonl(tmp_path, *rows)
    with pytest.raises(UsageError) as caught:
        scan(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) - len(source) < 500


def test_parquet_types_of_many_fields_stay_short(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [{f"field {n}": b"" for n in range(1000)}]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="column 'image' is struct<field 0: binary") as caught:
        scan(str(tmp_path / "m.parquet"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["m.jsonl", "m.txt", "m.csv"])
def test_a_line_that_is_too_long_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(blocks, "LONGEST", 5000)
    monkeypatch.setattr("paliscribe.manifest.csv_records.LONG", 3000)
    (tmp_path / name).write_text("image\n" + "a" * 9000 + "\n")
    if name == "m.jsonl":
        (tmp_path / name).write_text('{"image": "a"}\n' + "a" * 9000 + "\n")
    with pytest.raises(UsageError, match=rf"{name}, line 2: a line of more than "):
        scan(str(tmp_path / name))


@pytest.mark.parametrize("copies", [1, 50])
def test_parquet_is_read_by_bytes(copies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK", 100_000)
    pictures = [base64.b64encode(os.urandom(3000)).decode() for _ in range(300 // copies)] * copies
    pq.write_table(pa.table({"image": pictures}), tmp_path / "m.parquet")
    found = [block.table() for _, block in formats.blocks(str(tmp_path / "m.parquet"), Naming())]
    assert sum(map(len, found)) == 300 and max(map(len, found)) < 60, "also where a dictionary makes the file small"


def test_many_small_row_groups_are_joined(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [f"{n}.png" for n in range(5000)]}), tmp_path / "m.parquet", row_group_size=10)
    found = [block.table() for _, block in formats.blocks(str(tmp_path / "m.parquet"), Naming())]
    assert list(map(len, found)) == [5000]


MEASURE = r"""
import re, sys
from pathlib import Path
from paliscribe.manifest import freeze
from paliscribe.storage import open_store
freeze(sys.argv[1], open_store(sys.argv[2]), shard_rows=5000)
print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_fat_rows(kind: str, tmp_path: Path) -> None:
    peaks = []
    for rows in (1000, 3000):
        images = [f"data:image/png;base64,{n:08d}{'A' * 100_000}" for n in range(rows)]
        source = tmp_path / f"{rows}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.table({"image": images}), source, write_batch_size=64)
        else:
            source.write_text("".join(json.dumps({"image": image}) + "\n" for image in images))
        command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / f"run-{rows}")]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))  # KiB
    assert (peaks[1] - peaks[0]) / 1024 < 150, "200 MB of rows more"
