"""Files named `.json`: arrays of objects, JSON Lines, COCO's."""

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paliscribe.errors import UsageError
from paliscribe.manifest import json_files, read
from paliscribe.manifest.blocks import Source, pieces

SOURCE = Source("m.json", None, "image")
ROWS: list[dict[str, Any]] = [
    {"id": "1", "image": "a.jpg", "question": 'is "this" [a] {cat}, or\\not?\n'},
    {"id": "2", "image": "b.jpg", "question": "\\"},
    {"id": "3", "image": "c.jpg", "question": "é ☃ ,] ["},
]


def columns(path: Path) -> list[dict[str, Any]]:
    return [{**row.columns, "id": row.id, "image": row.image} for row in read(str(path))]


def read_text(tmp_path: Path, text: str, name: str = "m.json") -> list[dict[str, Any]]:
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return columns(tmp_path / name)


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
@pytest.mark.parametrize("name", ["m.json", "m.JSON", "m.json.gz"])
def test_an_array_has_the_rows_of_json_lines(name: str, indent: Any, tmp_path: Path) -> None:
    expected = read_text(tmp_path, "\n".join(map(json.dumps, ROWS)), "m.jsonl")
    for ascii_only in (True, False):
        text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
        assert read_text(tmp_path, text, name) == expected
        assert read_text(tmp_path, "\ufeff \r\n" + text.replace("\n", "\r\n") + "\n \n", name) == expected


def test_lines_named_json_are_read_as_lines(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    assert read_text(tmp_path, lines + "\n") == read_text(tmp_path, lines, "m.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"image": "a.jpg"}, 3]', "m.json, object 2: not a JSON object; the array holds one for each row"),
        ('["a.jpg"]', "m.json, object 1: not a JSON object"),
        ('[{"image": "a.jpg"},\n\n {"image": "b.jpg" "c"}]', "m.json, object 2: not a JSON object"),
        ('[{"image": "a.jpg"}, {"image": "b", "image": "c"}]', "object 2: the key 'image' is there twice"),
        ('[{"image": "a.jpg"}', "the array does not end; is the file cut off?"),
        ('[{"image": "a', "the array does not end"),
        ("[", "the array does not end"),
        ('[{"image": "a.jpg"}] {', "there is text after the array"),
        ('[{"image": "a\nb.jpg"}]', "object 1: not a JSON object"),
        ("3", "no array of objects; JSON with an object a line is named .jsonl"),
        ("[]", "no rows"),
        ("[ \n ]\n", "no rows"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        read_text(tmp_path, text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_bad_bytes_are_placed(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(b'  [ {"image": "a.jpg"} ,\n {"image": "\xff.jpg"}]')
    with pytest.raises(UsageError, match=r"object 2: not UTF-8 text \(byte 37\)"):
        columns(tmp_path / "m.json")


TEXT = st.text(max_size=6)  # to draw larger ones takes most of the time
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3), max_size=4),
    st.sampled_from([None, 0, 1]),
    st.integers(1, 9),
    st.sampled_from([(",", ":"), (" , \n", " : ")]),
)
def test_any_array_becomes_its_elements_whatever_the_pieces(
    rows: list[dict[str, Any]], indent: int | None, size: int, separators: tuple[str, str]
) -> None:
    text = json.dumps(rows, indent=indent, separators=separators, ensure_ascii=False).encode()
    file = io.BytesIO(text)
    skipped, found = json_files._first_element(iter(lambda: file.read(size), b""))
    lines = b"".join(json_files._Array(SOURCE).lines(found))
    assert skipped + len(lines) == len(text)
    assert [json.loads(line) for line in lines.split(b"\n") if line.strip()] == rows
    assert not re.search(rb"\n[^{]", lines.rstrip()), "the fast reader takes them"


def test_a_large_array_is_read_in_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece that is handed on is larger than what was read."""
    read_sizes: list[int] = []
    text = json.dumps([{"image": f"{number}.jpg"} for number in range(20_000)], indent=1).encode()

    class File(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            found = super().read(min(size or 0, 1000) if size and size > 0 else size)
            read_sizes.append(len(found))
            return found

    skipped, found = json_files._first_element(pieces(File(text))[1])
    handed = [len(piece) for piece in json_files._Array(SOURCE).lines(found)]
    assert sum(handed) + skipped == len(text) and max(handed) <= 1100 and max(read_sizes) == 1000
