"""Inputs of real users that once failed, each made by its own generator, through a run with the demo model.

Tests that make their own inputs of these kinds, by case:

columns-by-case: manifest/test_naming.py, test_names_that_readers_mix_up
csv-from-spreadsheets: manifest/test_csv_records.py, test_sheets, test_bad_bytes_are_placed,
    test_other_encodings_are_named
csv-large-field: manifest/test_csv_records.py, test_fields_of_any_size
data-url-forms: storage/test_inline.py, test_spellings
empty-columns: manifest/test_kinds.py, test_columns_without_a_value_keep_their_types
folder-listing: manifest/test_listing.py
list-column-prompts: grammar/test_tasks.py, test_lists_as_json_text;
    manifest/test_values.py, test_columns_of_lists_are_known_as_such
odd-values-in-carried-columns: manifest/test_kinds.py, test_mixed_values; manifest/test_values.py
openai-content-parts: online/test_chat.py, test_a_wrong_part_is_named,
    test_a_field_of_two_shapes_is_named_by_the_one_that_it_has
openai-max-tokens: online/test_chat.py, test_shapes_and_options_that_clients_send;
    front/test_refusals.py; batch/test_token_limit.py
openai-models-and-browsers: online/test_chat.py, test_models; online/test_browsers.py
other-spellings-of-addresses: storage/test_addresses.py, test_open
output-in-spark-and-datasets: results/test_publish.py, test_hugging_faces_datasets; results/test_spark.py
parquet-embedded-images: manifest/test_pictures.py; manifest/test_values.py
per-row-prompts: grammar/test_tasks.py, test_a_filled_prompt_has_the_kind_of_its_words
places-without-separators: golden/detect.json and golden/segment.json, by grammar/test_tasks.py, test_golden
png-large-metadata: images/test_damage.py
tiff-varieties: images/test_colours.py, test_whole_tiffs_of_other_varieties_are_not_called_broken
"""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from batch.alone import DemoPool, alone

from paliscribe.batch.run import run_batch
from paliscribe.config import JobConfig
from paliscribe.errors import UsageError

CASES = Path(__file__).parents[3] / "shared" / "cases"
Records = list[dict[str, Any]]
Annotate = Callable[..., Records]

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the generators of the cases are not beside this checkout")


@pytest.fixture(scope="module")
def pool() -> DemoPool:
    return DemoPool()


@pytest.fixture
def annotate(pool: DemoPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Annotate]:
    """Annotate a manifest in the folder of a case, which is made first; records in the order of rows."""
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []

    def run(manifest: str, task: str = "caption en", **settings: Any) -> Records:
        output = tmp_path / f"run-{manifest}"
        job = JobConfig(manifest=(manifest,), tasks=(task,), output=str(output), max_error_rate=1.0, **settings)
        with alone(monkeypatch, pool=pool):
            run_batch(job, lambda progress: notes.extend(progress.notes[len(notes) :]))
        records: Records = ds.dataset(output).to_table().sort_by([("row", "ascending")]).to_pylist()
        return records

    run.notes = notes  # type: ignore[attr-defined]
    yield run


def made(case: str) -> None:
    """Make the input of a case in the working directory."""
    runpy.run_path(str(CASES / case / "make.py"), run_name="__main__")


def texts(records: Records) -> list[str | None]:
    return [record["text"] for record in records]


def test_columns_by_case(annotate: Annotate) -> None:
    made("columns-by-case")
    with pytest.raises(UsageError, match=r"'Text'.*--rename-column") as refused:
        annotate("m.jsonl")
    assert "'Model'" in str(refused.value)
    renamed = ("Text=words", "Model=camera", "Label=tag")
    [record] = annotate("m.jsonl", rename_columns=renamed)
    assert (record["words"], record["camera"], record["tag"], record["label"]) == (
        "words of the collection",
        "X-T4",
        "L",
        "l",
    )
    assert "" not in record


def test_csv_from_spreadsheets(annotate: Annotate) -> None:
    made("csv-from-spreadsheets")
    [record] = annotate("columns.csv")
    assert record["question"] == "what is it?" and record["status"] == "ok"
    assert [record["id"] for record in annotate("rows.csv")] == ["1"]
    [record] = annotate("index.csv")
    assert record["unnamed_1"] in (0, "0")
    with pytest.raises(UsageError, match=r"line 3,?002"):
        annotate("latin1.csv")


def test_csv_large_field(annotate: Annotate) -> None:
    made("csv-large-field")
    assert [record["status"] for record in annotate("data-urls.csv")] == ["ok", "ok"]
    [record] = annotate("notes.csv")
    assert len(record["page_text"]) == 144_000


def test_data_url_forms(annotate: Annotate) -> None:
    made("data-url-forms")
    assert texts(annotate("m.jsonl")) == ["a purple circle"] * 3


def test_empty_columns(annotate: Annotate) -> None:
    made("empty-columns")
    for record in annotate("m.parquet", partition_by=("batch",)):
        assert record["note"] is None and record["batch"] is None


def test_folder_listing(annotate: Annotate) -> None:
    made("folder-listing")
    records = annotate("photos")
    named = {record["id"]: record["text"] for record in records if record["status"] == "ok"}
    assert named == dict.fromkeys(("one.jpg", "two.jfif", "three.jpe"), "a purple circle")
    assert all(record["id"] == "IMG_0001.HEIC" for record in records if record["status"] != "ok")
    assert len(records) == 4 or any(".heic" in words for words in annotate.notes)  # type: ignore[attr-defined]


def test_list_column_prompts(annotate: Annotate) -> None:
    made("list-column-prompts")
    records = annotate("lists.jsonl", "detect {classes}")
    assert [record["prompt"] for record in records] == ["detect red circle ; blue square", "detect red circle"]
    assert len(records[0]["boxes"]) == 2


def test_odd_values_in_carried_columns(annotate: Annotate) -> None:
    made("odd-values-in-carried-columns")
    assert [record["note"] for record in annotate("nan.jsonl")] == ["red", None]
    assert [record["note"] for record in annotate("house.jsonl")] == ["12", "12b"]


def test_other_spellings_of_addresses(annotate: Annotate, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made("other-spellings-of-addresses")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    records = {record["id"]: record for record in annotate("m.jsonl")}
    assert records["three"]["status"] == records["one"]["status"] == "ok"
    assert records["s3a"]["error_kind"] in ("missing", "forbidden")  # as s3:// is: there is no such bucket


def test_parquet_embedded_images(annotate: Annotate) -> None:
    made("parquet-embedded-images")
    for record in annotate("embedded.parquet"):
        assert record["status"] == "ok" and len(record["id"]) < 100 and len(record["image"] or "") < 300


def test_per_row_prompts(annotate: Annotate) -> None:
    made("per-row-prompts")
    [record] = annotate("prefixes.jsonl", "{prefix}")
    assert record["kind"] == "detect" and len(record["boxes"]) == 2


def test_png_large_metadata(annotate: Annotate) -> None:
    made("png-large-metadata")
    assert set(texts(annotate("m.jsonl"))) == {"a purple circle"}


def test_tiff_varieties(annotate: Annotate) -> None:
    made("tiff-varieties")
    for record in annotate("m.jsonl"):
        assert record["status"] == "ok" or record["error_kind"] == "unsupported", record["error_message"]
