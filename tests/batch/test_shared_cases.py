"""Inputs of real users that once failed, each made by its own generator, through a run with the demo model.

Tests that make their own inputs of these kinds, by case, with some of their further inputs:

columns-by-case: manifest/test_naming.py, test_names_that_readers_mix_up (Parquet; letters beyond ASCII; names of
    spaces), test_a_column_without_a_name_gets_one_and_is_told
csv-from-spreadsheets: manifest/test_csv_records.py, test_sheets (semicolons, `sep=`, rows longer than the header),
    test_bad_bytes_are_placed (with a byte order mark; JSON Lines), test_other_encodings_are_named
csv-large-field: manifest/test_csv_records.py, test_fields_of_any_size (5 MB, all quoted);
    storage/test_inline.py, test_large_ones_are_refused_as_other_images_are
data-url-forms: storage/test_inline.py, test_spellings (URL-safe, percent-encoded, without padding)
empty-columns: manifest/test_kinds.py, test_columns_without_a_value_keep_their_types (ten types; beside JSON Lines),
    test_columns_without_a_value_do_not_count_in_the_digest
folder-listing: manifest/test_listing.py (`.pjpeg`, prefixes of S3, folders named like files, HEIC where it is read)
list-column-prompts: grammar/test_tasks.py, test_lists_as_json_text (numbers and nulls; one item), test_values_in_words;
    manifest/test_values.py, test_columns_of_lists_are_known_as_such (Parquet)
odd-values-in-carried-columns: manifest/test_kinds.py, test_mixed_values (booleans, beyond 64 bits, lists);
    manifest/test_values.py, test_values_that_python_has_no_type_for (years beyond 9999, uint64)
openai-content-parts: online/test_chat.py, test_a_wrong_part_is_named (texts among parts, other fields),
    test_a_field_of_two_shapes_is_named_by_the_one_that_it_has (numbers as content and in `stop`)
openai-max-tokens: online/test_chat.py, test_shapes_and_options_that_clients_send; config/test_config.py,
    test_a_limit_that_leaves_no_room_for_a_prompt; batch/test_token_limit.py (resumes with another limit)
openai-models-and-browsers: online/test_chat.py, test_models (unknown names); online/test_app.py,
    test_pages_of_other_origins_may_call_only_where_the_settings_say_so (another origin, without a key)
other-spellings-of-addresses: storage/test_addresses.py, test_open (`s3n://`, `FILE:/`, escapes), test_split
output-in-spark-and-datasets: results/test_publish.py, test_hugging_faces_datasets (odd partitions, `data_files`),
    READERS (DuckDB, Polars); results/test_spark.py
parquet-embedded-images: manifest/test_pictures.py (binary columns, paths, neither); manifest/test_values.py,
    test_other_types_of_images_inside_a_parquet_manifest_are_refused, test_images_and_ids_that_are_no_text_are_refused,
    test_pictures_that_were_written_as_text_are_refused (base64, printed structs)
per-row-prompts: grammar/test_tasks.py, test_a_filled_prompt_has_the_kind_of_its_words (`{verb} {things}`, `Segment`),
    test_the_kind_is_read_off_the_prompt (capitals)
places-without-separators: golden/detect.json and golden/segment.json, by grammar/test_tasks.py, test_golden (without
    labels, after words, of labels with `<`, with a mask under detect, without one under segment)
png-large-metadata: images/test_damage.py, test_png_metadata_that_is_too_large_or_broken (iTXt, profiles),
    test_a_hundred_large_texts_of_a_png
tiff-varieties: images/test_colours.py, test_whole_tiffs_of_other_varieties_are_not_called_broken (float64, LAB, JPEG
    2000 inside), test_known_formats_that_are_not_read; images/test_optional_formats.py (HEIC of brand mif1)
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from batch.alone import DemoPool, alone
from models import demo_model
from online.conftest import CONFIG, EngineBackend, listen

import paliscribe
import paliscribe.demo
from paliscribe import config
from paliscribe.batch.run import run_batch
from paliscribe.config import FetchConfig, JobConfig
from paliscribe.engine import Engine
from paliscribe.errors import UsageError
from paliscribe.model.abilities import abilities
from paliscribe.online.keys import Keys
from paliscribe.online.service import Served, Service

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
    assert "'Model'" in str(refused.value) and "columns 'Label', 'label' would be carried" in str(refused.value)
    renamed = ("Text=words", "Model=camera", "Label=tag")
    [record] = annotate("m.jsonl", rename_columns=renamed)
    assert (record["words"], record["camera"], record["tag"], record["label"]) == (
        "words of the collection",
        "X-T4",
        "L",
        "l",
    )
    assert "" not in record and record["unnamed"] == 0
    assert "columns without a name are carried as 'unnamed'" in annotate.notes  # type: ignore[attr-defined]
    found = duckdb.sql('SELECT words, camera, tag, label, unnamed, "Text", "Model" FROM \'run-m.jsonl/**/*.parquet\'')
    assert found is not None and found.fetchall() == [
        ("words of the collection", "X-T4", "L", "l", 0, record["text"], record["model"])
    ]


def test_csv_from_spreadsheets(annotate: Annotate) -> None:
    made("csv-from-spreadsheets")
    [record] = annotate("columns.csv")
    assert record["question"] == "what is it?" and record["status"] == "ok"
    assert not [name for name in record if not name or name.startswith("unnamed")]
    assert [record["id"] for record in annotate("rows.csv")] == ["1"]
    [record] = annotate("index.csv")
    assert record["unnamed_1"] in (0, "0")
    with pytest.raises(UsageError, match=r"line 3,?002: .*byte 49,915"):
        annotate("latin1.csv")


def test_csv_large_field(annotate: Annotate) -> None:
    made("csv-large-field")
    assert [record["status"] for record in annotate("data-urls.csv")] == ["ok", "ok"]
    Path("run-data-urls.csv").rename("read")
    small, large = annotate("data-urls.csv", fetch=FetchConfig(max_bytes=100_000))
    assert (small["status"], large["error_kind"]) == ("ok", "too_large")
    [record] = annotate("notes.csv")
    assert len(record["page_text"]) == 144_000


def test_data_url_forms(annotate: Annotate) -> None:
    made("data-url-forms")
    assert texts(annotate("m.jsonl")) == ["a purple circle"] * 3


def test_empty_columns(annotate: Annotate) -> None:
    made("empty-columns")
    for record in annotate("m.parquet", partition_by=("batch",)):
        assert record["note"] is None and record["batch"] is None and record["status"] == "ok"
    schema = ds.dataset("run-m.parquet").schema
    assert (schema.field("note").type, schema.field("batch").type) == (pa.string(), pa.int64())
    Path("run-m.parquet").rename("carried")
    assert [record["error_kind"] for record in annotate("m.parquet", "answer en {note}")] == ["prompt"] * 2


def test_folder_listing(annotate: Annotate) -> None:
    made("folder-listing")
    records = annotate("photos")
    named = {record["id"]: record["text"] for record in records if record["status"] == "ok"}
    assert named == dict.fromkeys(("one.jpg", "two.jfif", "three.jpe"), "a purple circle")
    assert all(record["id"] == "IMG_0001.HEIC" for record in records if record["status"] != "ok")
    kinds = "2 hidden" if len(records) == 4 else "2 hidden, 1 .heic"  # it is listed where its library is installed
    assert any(words.endswith(f"left out: {kinds}") for words in annotate.notes)  # type: ignore[attr-defined]


def test_list_column_prompts(annotate: Annotate) -> None:
    made("list-column-prompts")
    records = annotate("lists.jsonl", "detect {classes}")
    assert [record["prompt"] for record in records] == ["detect red circle ; blue square", "detect red circle"]
    assert len(records[0]["boxes"]) == 2
    table = pa.Table.from_pylist([json.loads(line) for line in Path("lists.jsonl").read_text().splitlines()])
    pq.write_table(table, "lists.parquet")
    assert [record["prompt"] for record in annotate("lists.parquet", "detect {classes}")] == [
        record["prompt"] for record in records
    ]
    Path("run-lists.jsonl").rename("detected")
    [record, _] = annotate("lists.jsonl", "answer en where are {classes}?")
    assert record["prompt"] == "answer en where are red circle, blue square?"


def test_odd_values_in_carried_columns(annotate: Annotate) -> None:
    made("odd-values-in-carried-columns")
    assert [record["note"] for record in annotate("nan.jsonl")] == ["red", None]
    assert [record["note"] for record in annotate("house.jsonl")] == ["12", "12b"]
    told = "columns with values of several types are carried as text: 'note' (the first: int, str)"
    assert [words for words in annotate.notes if "types" in words] == [told]  # type: ignore[attr-defined]


def test_other_spellings_of_addresses(annotate: Annotate, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made("other-spellings-of-addresses")
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    records = {record["id"]: record for record in annotate("m.jsonl")}
    assert records["three"]["status"] == records["one"]["status"] == "ok"
    assert records["s3a"]["error_kind"] in ("missing", "forbidden")  # as s3:// is: there is no such bucket


def test_parquet_embedded_images(annotate: Annotate) -> None:
    made("parquet-embedded-images")
    records = annotate("embedded.parquet")
    assert texts(records) == ["a purple circle", "a red circle"]
    for record in records:
        assert record["status"] == "ok" and len(record["id"]) < 100 and len(record["image"] or "") < 300


def test_per_row_prompts(annotate: Annotate) -> None:
    made("per-row-prompts")
    [record] = annotate("prefixes.jsonl", "{prefix}")
    assert record["kind"] == "detect" and len(record["boxes"]) == 2
    Path("run-prefixes.jsonl").rename("detected")
    [record] = annotate("prefixes.jsonl", "Detect red circle ; blue square")
    assert record["kind"] == "detect"


def test_places_without_separators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pipeline.demo", paliscribe.demo)  # its name in the generator
    made("places-without-separators")
    record = paliscribe.ask("circles.png", "detect circle", model="model")
    assert record.text is not None and ";" not in record.text
    assert [box.label for box in record.boxes] == ["circle", "circle"]


def test_png_large_metadata(annotate: Annotate) -> None:
    made("png-large-metadata")
    assert set(texts(annotate("m.jsonl"))) == {"a purple circle"}


def test_tiff_varieties(annotate: Annotate) -> None:
    made("tiff-varieties")
    whole, bands, floats = annotate("m.jsonl")
    assert whole["status"] == "ok"
    assert bands["error_kind"] == floats["error_kind"] == "unsupported"
    assert "a TIFF of 5 x 16 bits" in bands["error_message"] and "a TIFF of 3 x 32 bits" in floats["error_message"]


@contextlib.contextmanager
def asked(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Iterator[list[str]]:
    """What the questions of a case print that are asked of an endpoint without keys."""
    model = demo_model()
    engine = Engine(model)
    engine.start()
    served = Served("demo", model.located.revision, model.image_size, EngineBackend(engine), abilities(model.spec))
    server, thread = listen(Service(CONFIG.model_copy(update=settings), [served]), Keys({}))
    try:
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        monkeypatch.setattr("sys.argv", ["ask.py", address])
        runpy.run_path(str(CASES / case / "ask.py"), run_name="__main__")
        yield capsys.readouterr().out.splitlines()
    finally:
        server.should_exit = True
        thread.join(10)
        engine.close()


def test_openai_content_parts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with asked("openai-content-parts", capsys, monkeypatch) as (control, as_text, inputs, source, stops):
        assert control.split()[1:] == ["200", "None"] and as_text.split()[3:] == ["200", "None"]
        for line in (inputs, source):
            assert " 400 " in line and "messages[0].content[0].type: input should be 'text' or 'image_url'" in line
        assert " 400 " in stops and "stop: list should have at most 4 items" in stops


def test_openai_max_tokens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with asked("openai-max-tokens", capsys, monkeypatch) as lines:
        assert len(lines) == 4 and all(line.endswith(" 200 None") for line in lines)
    with pytest.raises(UsageError, match="max_tokens 600 leaves no room for a prompt"):
        config.parse({"manifest": "photos", "tasks": ["caption en"], "output": "run", "max_tokens": 600})


@pytest.mark.parametrize(("origins", "status"), [((), 405), (("http://localhost:3000",), 200)])
def test_openai_models_and_browsers(
    origins: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked("openai-models-and-browsers", capsys, monkeypatch, cors_origins=origins) as lines:
        assert lines == ["models.retrieve 200", f"preflight {status}"]


@pytest.mark.long
def test_output_in_spark_and_datasets(annotate: Annotate, tmp_path: Path) -> None:
    made("folder-listing")
    good = sum(record["status"] == "ok" for record in annotate("photos"))
    command = [sys.executable, str(CASES / "output-in-spark-and-datasets" / "read.py"), "run-photos"]
    offline = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, env=offline, capture_output=True, text=True, check=True).stdout
    assert f"datasets annotations           {good}" in told.splitlines()
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "results.md").read_text()
    assert "recursiveFileLookup" in guide and "load_dataset" in guide, "what works in both"
