"""Columns that readers of the results would mix up are refused by name, and can be renamed or left out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paliscribe.errors import UsageError
from paliscribe.manifest import freeze, read, scan
from paliscribe.storage import open_store

ROW = {"id": "r0", "image": "a.png"}


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "m.jsonl")


def refusal(source: str, **columns: Any) -> str:
    with pytest.raises(UsageError) as caught:
        scan(source, **columns)
    message = str(caught.value)
    assert "\n" not in message and len(message) - len(source) < 500
    return message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Text"], "column 'Text' has the name of a result column (case does not count); rename it"),
        (["text", "MODEL"], "column 'MODEL', 'text' has the name of a result column"),
        (["Label", "label"], "columns 'Label', 'label' would be carried under one name"),
        (["ÄPFEL", "äpfel", "Äpfel"], "columns 'ÄPFEL', 'äpfel', 'Äpfel' would be"),
        (["Kind", "a", "A"], "column 'Kind' has the name of a result column (case does not count); rename it; columns"),
        (["ID"], "--id-column ID takes it for the ids"),
        (["", " "], "columns '', ' ' would be carried under one name"),
        (["Row count", "row count"], "--rename-column 'Row count=NEW' gives it another name, --drop-column 'Row"),
    ],
)  # fmt: skip
def test_names_that_readers_mix_up(names: list[str], words: str, tmp_path: Path) -> None:
    assert words in refusal(jsonl(tmp_path, ROW | dict.fromkeys(names, 1)))
    assert words in refusal(jsonl(tmp_path, ROW, {"image": "b.png"} | dict.fromkeys(names, 1)))
    pq.write_table(
        pa.table({name: [value] for name, value in (ROW | dict.fromkeys(names, "x")).items()}), tmp_path / "m.parquet"
    )
    assert words in refusal(str(tmp_path / "m.parquet"))


def test_columns_are_renamed_and_left_out(tmp_path: Path) -> None:
    row = ROW | {"Text": "words", "Model": "X-T4", "Label": "L", "label": "l", "a=b": 1}
    source = jsonl(tmp_path, row)
    settings: dict[str, Any] = {
        "rename_columns": ["Text=words", "Label=big label", "a=b=ratio"],
        "drop_columns": ["Model"],
    }
    [found] = read(source, **settings)
    assert found.columns == {"words": "words", "big label": "L", "label": "l", "ratio": 1}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "m.parquet")
    assert [each.columns for each in read(str(tmp_path / "m.parquet"), **settings)] == [found.columns]
    assert scan(source, **settings).digest == scan(str(tmp_path / "m.parquet"), **settings).digest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"drop_columns": ["none"]}, "no column 'none', which is to be dropped or renamed (columns: 'id', 'image'"),
        ({"rename_columns": ["none=x"]}, "no column 'none'"),
        ({"rename_columns": ["x=y"]}, "columns 'x', 'y' would be carried under one name"),
        ({"rename_columns": ["x=Y"]}, "columns 'x', 'y' would be carried under one name"),
        ({"rename_columns": ["x=Task"]}, "column 'x' has the name of a result column"),
        ({"drop_columns": ["image"]}, "column 'image' is the one of images or ids"),
        ({"rename_columns": ["id=key"]}, "column 'id' is the one of images or ids"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(jsonl(tmp_path, ROW | {"x": 1, "y": 2}), **settings)


def test_ids_can_be_left_out(tmp_path: Path) -> None:
    source = jsonl(tmp_path, {"id": 1, "image": "a.png"}, {"id": 1, "image": "b.png"})
    assert [row.id for row in read(source, drop_columns=["id"])] == ["a.png", "b.png"]


def test_a_column_without_a_name_gets_one_and_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    frozen = freeze(jsonl(tmp_path, ROW | {"": 7}), open_store(str(tmp_path / "run")), shard_rows=1, tell=told.append)
    assert frozen.schema.names == ["unnamed"]
    assert told == ["columns without a name are carried as 'unnamed'"]


@pytest.mark.parametrize(
    "text", ['{"image": "a", "n": 1, "n": 2}', '{"image": "a", "image": "b"}', '{"n":[1],"n":[1]}']
)
def test_a_key_that_is_there_twice_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a"}\n' + text + "\n")
    assert "m.jsonl, line 2: the key " in refusal(str(path))


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["image", "x", "x"])
    pq.write_table(table, tmp_path / "m.parquet")
    assert "there are two columns 'x'" in refusal(str(tmp_path / "m.parquet"))
