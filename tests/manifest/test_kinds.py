"""Carried columns have a type that holds all their values; no value of a column that no task uses stops a run."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paliscribe.errors import UsageError
from paliscribe.manifest import KnownIds, Shards, blocks, freeze, hashed, load, read, scan, updated_rows
from paliscribe.storage import open_store


def lines(folder: Path, values: list[str], name: str = "m.jsonl") -> str:
    """A manifest with these JSON values in a column `n`."""
    path = folder / name
    path.write_text("".join(f'{{"id": "{i}", "image": "s3://b/a", "n": {value}}}\n' for i, value in enumerate(values)))
    return str(path)


def frozen_values(source: str, run: Path) -> tuple[str, list[Any], list[str]]:
    """The type of column `n`, its values, and what the user is told."""
    told: list[str] = []
    frozen = freeze(source, open_store(str(run)), shard_rows=2, tell=told.append)
    shards = Shards(open_store(str(run)))
    rows = [row for shard in range(frozen.shards) for row in shards.read(shard)]
    assert load(open_store(str(run))) == frozen and frozen.rows == len(rows)
    return str(frozen.schema.field("n").type), [row.columns.get("n") for row in rows], told


MIXED = [
    (["12", '"12b"'], "string", ["12", "12b"], True),
    (['"red"', "NaN", "null"], "string", ["red", None, None], False),
    (["NaN", '"red"'], "string", [None, "red"], False),
    (["true", "NaN"], "bool", [True, None], False),
    (["true", "1", "0.5"], "string", ["true", "1", "0.5"], True),
    (["9007199254740993", "0.5"], "string", ["9007199254740993", "0.5"], True),
    (["0.5", "1", "-9007199254740993"], "string", ["0.5", "1", "-9007199254740993"], True),
    (["9007199254740993", "NaN", "1"], "int64", [9007199254740993, None, 1], False),
    (["9007199254740992", "0.5"], "double", [2.0**53, 0.5], False),
    (["18446744073709551615", "1"], "string", ["18446744073709551615", "1"], True),
    (["-9223372036854775809"], "string", ["-9223372036854775809"], True),
    (["[1]", "1"], "string", ["[1]", "1"], True),
    (["1", "2.5", "NaN"], "double", [1.0, 2.5, pytest.approx(float("nan"), nan_ok=True)], False),
]  # fmt: skip


@pytest.mark.parametrize(("values", "kind", "expected", "is_told"), MIXED)
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_mixed_values(
    values: list[str], kind: str, expected: list[Any], is_told: bool, block: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(blocks, "BLOCK", block)
    found = frozen_values(lines(tmp_path, values), tmp_path / "run")
    assert found[:2] == (kind, expected)
    assert len(found[2]) == is_told
    if is_told:
        assert found[2][0].startswith("columns with values of several types are carried as text: 'n' (the first: ")


numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str), st.integers(-9, 9).map(str), st.floats(allow_infinity=False).map(json.dumps),
    st.sampled_from(["true", "null", '"x"', '"1"', "[2]"]),
)  # fmt: skip


@settings(max_examples=60 if os.environ.get("FULL") else 6, deadline=None)
@example(["true", "0", "0.0"])
@given(st.lists(numbers, min_size=1, max_size=6))
def test_any_mixture_is_read_alike_in_blocks_of_any_size(values: list[str]) -> None:
    found = []
    for size in (1, 64, 1 << 20):
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(blocks, "BLOCK", size)
            source = lines(Path(folder), values)
            found.append((repr(frozen_values(source, Path(folder) / "run")), scan(source).digest))
    assert found[0] == found[1] == found[2]


def test_many_mixed_columns_take_two_passes(tmp_path: Path) -> None:
    rows = [{"image": "a", **{f"column {n}": value for n in range(300)}} for value in (1, "x")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps({"id": str(n)} | row) + "\n" for n, row in enumerate(rows)))
    told: list[str] = []
    counts: list[int] = []
    freeze(
        str(tmp_path / "m.jsonl"), open_store(str(tmp_path / "run")), shard_rows=1, tell=told.append,
        progress=counts.append,
    )  # fmt: skip
    assert len(told) == 1 and "more" in told[0] and len(told[0]) < 400
    assert counts == [2]


def test_rows_of_a_mixed_column_are_read_again_for_a_retry(tmp_path: Path) -> None:
    source = lines(tmp_path, ["12", '"12b"', "true"])
    frozen = freeze(source, open_store(str(tmp_path / "run")), shard_rows=2)
    failed = KnownIds(tmp_path)
    failed.add(hashed(pa.array(["0", "2"])), np.array([0, 2]))
    errors: list[UsageError] = []
    found = list(updated_rows(frozen, failed, tmp_path, unreadable=errors.append))
    assert not errors
    assert [row.columns for row in found] == [{"n": "12"}, {"n": "true"}]
    assert [row.columns.get("n") for row in read(source)] == ["12", "12b", "true"]


@pytest.mark.parametrize("mixed", [False, True])
def test_columns_without_a_value_keep_their_types(mixed: bool, tmp_path: Path) -> None:
    nothing = {
        "flag": pa.bool_(), "small": pa.int8(), "large": pa.uint64(), "real": pa.float32(), "words": pa.large_string(),
        "when": pa.timestamp("us"), "things": pa.list_(pa.string()), "any": pa.null(), "pixels": pa.binary(),
        "sort": pa.dictionary(pa.int8(), pa.int64()),
    }  # fmt: skip
    table = {"image": ["a.png", "b.png"]} | {name: pa.nulls(2, kind) for name, kind in nothing.items()}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    sources = [str(tmp_path / "m.parquet")]
    if mixed:
        sources.append(lines(tmp_path, ["1", '"x"']))
    schema = scan(sources).schema
    found = {name: str(schema.field(name).type) for name in nothing}
    assert found == {
        "flag": "bool", "small": "int64", "large": "int64", "real": "double", "words": "string", "when": "string",
        "things": "string", "any": "string", "pixels": "string", "sort": "int64",
    }  # fmt: skip


def test_columns_without_a_value_do_not_count_in_the_digest(tmp_path: Path) -> None:
    first = lines(tmp_path, ["1", "2"])
    (tmp_path / "more.jsonl").write_text(Path(first).read_text().replace("}", ', "empty": null}'))
    assert scan(str(tmp_path / "more.jsonl")).digest == scan(first).digest, "runs of an older version go on"
    assert scan(str(tmp_path / "more.jsonl")).schema.names == ["empty", "n"]
