"""A block read by columns has the rows that the same block read by rows has, or it refuses to be read by columns."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paliscribe.errors import UsageError
from paliscribe.manifest import blocks, columns, csv_records, kinds, read, reading, scan
from paliscribe.manifest.blocks import Block, Source, Uncertain
from paliscribe.manifest.columns import normalised
from paliscribe.manifest.csv_records import CsvLines, Header
from paliscribe.manifest.lines import JsonLines, TextLines
from paliscribe.manifest.naming import Naming
from paliscribe.records import ManifestRow
from paliscribe.storage import resolve

SOURCE = Source("/manifests/m", None, "image")
HEADER = Header(("id", "image", "s"))


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, all blocks are read by rows."""

    def refuse(*_: object) -> None:
        raise Uncertain

    return lambda: monkeypatch.setattr(reading, "normalised", refuse)


def row_by_row(block: Block, types: dict[str, pa.DataType]) -> list[ManifestRow] | str:
    """The rows of a block as its definition has them, or the message of its error."""
    whole = reading.Reading("/manifests/m", Naming(), types)
    found: list[ManifestRow] = []
    try:
        for part in whole._by_rows(SOURCE, block):
            found += reading.as_rows(whole._with_ids(part.table), len(found))
            natural = {name: kinds.natural(each) for name, each in part.kinds.items() if name not in types}
            if None in natural.values():
                return "mixed"
    except (UsageError, ValueError) as error:
        return str(error)
    return found


def by_columns(block: Block, types: dict[str, pa.DataType]) -> list[ManifestRow] | None:
    """The rows of a block by columns; None if it must be read by rows."""
    try:
        table = normalised(block, Naming(), "/manifests", types).table
    except Uncertain:
        return None
    return list(reading.as_rows(reading.Reading("/manifests/m", Naming())._with_ids(table), 0))


def check(block: Block, *, is_certain: bool | None = None) -> None:
    for types in ({}, {"n": pa.string(), "s": pa.string()}):
        found = by_columns(block, types)
        if found is not None:
            assert repr(found) == repr(row_by_row(block, types))  # 1 is not 1.0
    if is_certain is not None:
        assert (found is not None) == is_certain


def json_block(text: str) -> JsonLines:
    return JsonLines(SOURCE, text.encode(errors="surrogatepass"), 0, 0)


NUMBERS = ["9223372036854775808", "-0", "-0.0", "1e3", "1e999", "12345678901234567", "2.5", "NaN", "1"]
OTHERS = ["null", "true", "[1]", '{"a":1.0}', '"2024-02-29"', '"\\ud800"', '"\\ud83d\\ude00"', '"\ufeff\x1c"']
IMAGES = ["1", "1.0", "true", '" \\u00a0x\\u2003"', '"DATA:x"', '"./a"', '"../a"', '"http://h/a"', '"a"']
BITS = [
    "\n",
    "\r\n",
    "\r",
    " ",
    ",",
    "[",
    "]",
    "{",
    "}",
    '"',
    "x",
    "\n\n",
    "\u2028",
    "\x00",
    "{}",
    '{"":1}',
    '{"a":1,"a":2}',
]
PIECES = st.sampled_from(
    [f'{{"n":{value}}}' for value in NUMBERS + OTHERS]
    + [f'{{"image":{value}}}' for value in IMAGES]
    + BITS
    + ["\n"] * 9
)


@settings(max_examples=600, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=8).map("".join))
@example('{"a":1}{"a":2}\n\n')
@example('{"a":\n1}{"b":2}')
@example('{"a":\n{"b":2}}')
@example('{"n":1}\n{"n":2.5}\n{"n":9007199254740993}')
def test_json_lines_by_columns(text: str) -> None:
    check(json_block(text))


values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.booleans(),
    st.none(),
    st.just("2024-02-29T12:30:01"),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=2),
)
names = st.sampled_from(["id", "image", "n", "s", "", "ü"])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=5), st.booleans())
def test_any_json_by_columns(rows: list[dict[str, Any]], ascii_only: bool) -> None:
    check(json_block("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)))


def test_plain_json_is_read_by_columns() -> None:
    rows = [{"id": str(n), "image": f"{n}.png", "n": n, "x": n / 4, "b": n > 1, "day": "2024-02-29"} for n in range(3)]
    text = "\n".join(map(json.dumps, rows))
    for ending in ("", "\n", "\r\n", "\n\n"):
        check(json_block(text + ending), is_certain=True)
    check(json_block(text.replace("\n", "\r\n")), is_certain=True)
    check(json_block(text.replace("\n", "\n\n")), is_certain=False)


CSV = ["a", ",", '"', '""', "\n", "\r\n", "\r", " ", "é", "\x00", "b,c,d\n", '"x\ny",1,2\n']


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(CSV), max_size=12).map("".join))
def test_csv_by_columns(text: str) -> None:
    data = text.encode()
    end = csv_records._record_end(data, True)
    if end is not None:  # else it is never a block of its own
        check(CsvLines(SOURCE, data[:end], 0, 0, HEADER))


def test_plain_csv_is_read_by_columns() -> None:
    text = 'a,1.png,007\n"b ""c""","2\n.png",\n\nd,,"é,"\n'
    for body in (text, text.replace("\n", "\r\n")):
        check(CsvLines(SOURCE, body.encode(), 0, 0, HEADER), is_certain=True)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a.png", "/b", " ", "\t", "\n", "\r\n", "\r", "\x1c", "\x85", "é", "s3://x/y"])).map(
        "".join
    )
)
def test_text_lists_by_columns(text: str) -> None:
    check(TextLines(SOURCE, text.encode(), 0, 0))


@pytest.mark.parametrize("folder", ["/manifests", "s3://bucket/some/folder", "s3://bucket", "https://host/x"])
def test_references_are_resolved_as_one_by_one(folder: str) -> None:
    references = [
        "a",
        "./a",
        "../a",
        "b/../a",
        "b/./a",
        "/a",
        "//a",
        "s3://x/../y",
        "data:x",
        "DATA:x",
        "a/..",
        ".",
        "",
        None,
    ]
    for some in (references, [ref for ref in references if ref and "./" not in ref]):
        expected = [None if ref is None else resolve(ref, folder) for ref in some]
        assert columns.resolved(pa.array(some, pa.string()), folder).to_pylist() == expected


TEXTS: dict[str, str] = {
    "m.jsonl": "".join(json.dumps({"id": f"é{n}", "image": f"{n}.png", "s": "\n" * (n % 3)}) + "\n" for n in range(40)),
    "m.csv": "id,image,s\n" + "".join(f'é{n},"{n}\n.png","say ""{n}"", {"x" * n}"\n' for n in range(40)),
    "m.txt": "".join(f"é{n}.png\n" for n in range(40)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_blocks_of_any_size_have_the_same_rows(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_rows: Callable[[], None]
) -> None:
    path = tmp_path / name
    path.write_text("\ufeff" + TEXTS[name])
    whole = list(read(str(path)))
    digest = scan(str(path)).digest
    assert len(whole) == 40
    monkeypatch.setattr(blocks, "BLOCK", size)
    assert list(read(str(path))) == whole and scan(str(path)).digest == digest
    by_rows()
    assert list(read(str(path))) == whole and scan(str(path)).digest == digest


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_misplaced_quote_in_the_middle_of_a_csv_file(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    path = tmp_path / "m.csv"
    path.write_text('id,image,s\n1,a,"x\ny"\n2,b,5" screen\n3,c,"z"\n')
    assert [row.columns["s"] for row in read(str(path))] == ["x\ny", '5" screen', "z"]
    path.write_text('id,image,s\n1,a,"x\ny"\n2,b,"5" screen\n3,c,"z"\n')
    with pytest.raises(UsageError, match=r"m\.csv, line 4: "):
        list(read(str(path)))
    path.write_text('id,image,s\n1,a,b\n2,b,"open\n3,c,z\n')
    with pytest.raises(UsageError, match=r"m\.csv, line 4: "):
        list(read(str(path)))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_errors_name_the_line_of_the_file(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", size)
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"image": "a"}\n\r\n{"image": "b"}\r\n{"image": "c"}\nnot JSON\n')
    with pytest.raises(UsageError, match="line 5: not a JSON object"):
        list(read(str(path)))
    path.write_bytes(b'{"image": "a"}\n\n{"image": "\xff"}\n')
    with pytest.raises(UsageError, match="line 3: not UTF-8 text"):
        list(read(str(path)))


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 100)
    path = tmp_path / "m.jsonl"
    path.write_text('{"image": "a"}\n' * 1000 + "not JSON\n")
    rows: Iterator[ManifestRow] = read(str(path))
    assert next(rows).image == f"{tmp_path}/a"
    rows.close()  # type: ignore[attr-defined]
