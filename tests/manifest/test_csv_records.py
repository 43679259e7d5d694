"""CSV files as spreadsheets and pandas write them."""

import csv
from pathlib import Path
from typing import Any

import pytest

from paliscribe.errors import UsageError
from paliscribe.manifest import blocks, csv_records, freeze, read, scan
from paliscribe.storage import open_store


@pytest.fixture(params=[1, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(blocks, "BLOCK", request.param)
    return int(request.param)


def written(folder: Path, body: bytes, name: str = "m.csv") -> str:
    (folder / name).write_bytes(body)
    return str(folder / name)


def rows(source: str) -> list[tuple[str, dict[str, Any]]]:
    return [(row.id, dict(row.columns)) for row in read(source)]


def refusal(source: str) -> str:
    with pytest.raises(UsageError) as caught:
        scan(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) - len(source) < 300
    return str(caught.value)


ONE = [("1", {"n": "x"})]
TWO = [("1", {"n": "x"}), ("2", {"n": ""})]
SHEETS: list[tuple[bytes, list[tuple[str, dict[str, Any]]]]] = [
    (b"id,image,n,,\r\n1,a.png,x,,\r\n", ONE),
    (b",id,,image,n\n,1,,a.png,x\n", ONE),
    (b"id,image,n, \n1,a.png,x,\n", ONE),
    (b"id,image,n\r\n1,a.png,x\r\n,,\r\n2,b.png,\r\n,,\r\n\r\n", TWO),
    (b'id,image,n\n1,a.png,x\n"", ,\t\n2,b.png,\n', TWO),
    (b"id,image,n\n1,a.png,x,\n2,b.png,,, \n", TWO),
    (b"id;image;n\r\n1;a.png;x;;\r\n", ONE),
    (b"\n,,\r\n\r\nid,image,n\r\n1,a.png,x\r\n", ONE),
    (b"\xef\xbb\xbfid,image,n\n1,a.png,x\n", ONE),
    (b"id;image;n\n1;a.png;x\n", ONE),
    (b"id;image;n;;\r\n1;a.png;x;;\r\n;;;;\r\n2;b.png;;;\r\n", TWO),
    (b"id\timage\tn\n1\ta.png\tx\n", ONE),
    (b"id|image|n\n1|a.png|x\n", ONE),
    (b"sep=;\r\nid;image;n\r\n1;a.png;x\r\n", ONE),
    (b'\xef\xbb\xbf"sep=\t"\nid\timage\tn\n1\ta.png\tx\n', ONE),
    (b'"id";"image";"n"\n"1";"a.png";"x"\n', ONE),
    (b'id;image;n\n1;a.png;"x; ""y"",\nz"\n', [("1", {"n": 'x; "y",\nz'})]),
    (b'id;image;"n, with\n; more"\n1;a.png;x\n', [("1", {"n, with\n; more": "x"})]),
    (b"id,image,n\r1,a.png,x\r2,b.png,\r", TWO),
    (b"image,n;m\n1,x\n", [("1", {"n;m": "x"})]),
    (b",image\n0,a.png\n", [("a.png", {"unnamed_1": "0"})]),
    (b"image,,\na.png,,\nb.png,,late\n", [("a.png", {}), ("b.png", {"unnamed_3": "late"})]),
    (b"image,,unnamed_2\na.png,x,y\n", [("a.png", {"unnamed_2_": "x", "unnamed_2": "y"})]),
]


@pytest.mark.parametrize(("body", "expected"), SHEETS)
def test_sheets(body: bytes, expected: list[tuple[str, dict[str, Any]]], block: int, tmp_path: Path) -> None:
    source = written(tmp_path, body)
    assert rows(source) == expected
    schema = freeze(source, open_store(str(tmp_path / "run")), shard_rows=1).schema
    assert set(schema.names) == {name for _, columns in expected for name in columns}, "empty columns are left out"
    assert rows(written(tmp_path, body, "m.TSV")) == expected


def test_an_index_without_a_name_gets_one_and_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    source = written(tmp_path, b",image,,\n0,a.png,,\n")
    freeze(source, open_store(str(tmp_path / "run")), shard_rows=1, tell=told.append)
    assert told == ["columns without a name are carried as 'unnamed_1'"]


@pytest.mark.parametrize("misplaced", [b"", b'q,a.png,5" screen\n'])
def test_bad_bytes_are_placed(misplaced: bytes, block: int, tmp_path: Path) -> None:
    start = b"\xef\xbb\xbfid,image,n\n" + misplaced + b"".join(b"%d,a.png,plain\n" % n for n in range(300))
    message = refusal(written(tmp_path, start + b"x,a.png,caf\xe9\n"))
    line = start.count(b"\n") + 1
    assert f"m.csv, line {line}: not UTF-8 text (byte {len(start) + 11:,}); save it as UTF-8" in message
    lines = b'{"image": "a"}\n' * 300 + b'\n{"image": "caf\xe9"}\n'
    message = refusal(written(tmp_path, lines, "m.jsonl"))
    assert f"m.jsonl, line 302: not UTF-8 text (byte {lines.index(b'caf') + 3:,})" in message


def test_a_bad_byte_deep_in_a_large_file_is_placed(tmp_path: Path) -> None:
    start = b"id,image,note\n" + b"".join(b"%d,a.png,plain\n" % number for number in range(400_000))
    message = refusal(written(tmp_path, start + b"x,a.png,caf\xe9\n"))
    assert f"line 400002: not UTF-8 text (byte {len(start) + 11:,})" in message


def test_other_encodings_are_named(tmp_path: Path) -> None:
    assert "line 1: UTF-16; save it as UTF-8" in refusal(written(tmp_path, "id,image\n1,a\n".encode("utf-16")))


@pytest.mark.parametrize("size", [200_000, 5_000_000])
@pytest.mark.parametrize("quoted", [True, False])
def test_fields_of_any_size(size: int, quoted: bool, tmp_path: Path) -> None:
    url, words = f"data:image/png;base64,{'A' * size}", "lorem, ipsum\n" * (size // 13)
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerows(
            [["id", "image", "page"], ["small", "a.png", ""], ["large", url, words]]
        )
    small, large = read(str(tmp_path / "m.csv"))
    assert small.image == f"{tmp_path}/a.png"
    assert large.image == url and large.columns == {"page": words}


def test_a_quote_that_is_not_closed_ends_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "LONG", 1000)
    before = csv.field_size_limit(20_000)
    try:
        source = written(tmp_path, b'image,n\na,b\n"c","' + b"x\n" * 20_000)
        assert "m.csv, line 3: a value of more than " in refusal(source)
    finally:
        csv.field_size_limit(before)


def test_columns_that_are_there_twice_are_named(tmp_path: Path) -> None:
    assert "the header names a column twice: 'n'" in refusal(written(tmp_path, b"image,n,n,,\na,1,2,,\n"))
