"""What is wrong with a request is said in one line, with exit code 2, before anything is started."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from front.conftest import Paliscribe, read_rows, task_flags, write_rows

from paliscribe.demo import CHECKPOINT


def refused(said: object, *words: str) -> None:
    code, err = said.code, said.err  # type: ignore[attr-defined]
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("paliscribe: ")
    for word in words:
        assert word in err


@pytest.fixture
def job(collection: Path, tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({"manifest": str(collection), "tasks": ["ocr"], "output": str(tmp_path / "o")}))
    return file


def change(job: Path, **values: object) -> Path:
    job.write_text(json.dumps(json.loads(job.read_text()) | values))
    return job


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demp"], ["model demp: neither a folder nor a Hugging Face id", "did you mean 'demo'?"]),
        (["nothing.yaml"], ["nothing.yaml: no such endpoint file"]),
        (["demo", "--model", "Demo"], ["model Demo: ", "did you mean 'demo'?"]),
        (["--port", "70000"], ["serve: 'port': input should be less than or equal to 65535"]),
        (["--host", "0.0.0.0"], ["requires API keys"]),
        (["--model", "/no/such/folder"], ["no such folder"]),
        (["--keys", "/no/such/file"], ["cannot be read"]),
    ],
)
def test_what_cannot_be_served(
    paliscribe: Paliscribe, monkeypatch: pytest.MonkeyPatch, words: list[str], said: list[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("PALISCRIBE")]:
        monkeypatch.delenv(name)
    refused(paliscribe("serve", *words), *said)


def test_a_port_that_is_taken_is_said_before_anything_starts(paliscribe: Paliscribe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = paliscribe("serve", "--port", str(port))
    assert said.code == 1 and f"cannot listen on 127.0.0.1:{port}" in said.err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"output": "s3://bucket/" + "long/" * 60}, ["output s3://bucket/long/", "more than 240 bytes"]),
        ({"max_tokens": 600}, ["max_tokens 600 leaves no room for a prompt", "pool.text_tokens"]),
        ({"maxtokens": 5}, ["unknown key 'maxtokens'", "did you mean 'max_tokens'?"]),
        ({"shard_rows": "ten"}, ["'shard_rows'", "valid integer"]),
        ({"tasks": ["ocr", "ocr"]}, ["duplicate tasks", "'ocr'"]),
        ({"tasks": ["answer en {question.x}"]}, ["placeholder"]),
        ({"manifest": "/nowhere/at-all.jsonl"}, ["manifest /nowhere/at-all.jsonl: no such file"]),
        ({"image_column": "url"}, ["no column 'url'", "'image'", "--image-column"]),
        ({"tasks": ["answer en {query}"]}, ["needs a column 'query'"]),
        ({"partition_by": ["colour"]}, ["partition_by names 'colour'", "question"]),
        ({"model": "/nowhere/model"}, ["model /nowhere/model: no such folder"]),
        ({"output": "ftp://there/out"}, ["unknown scheme 'ftp'"]),
        ({"mask_decoder": "/nowhere/vae.npz"}, ["mask_decoder /nowhere/vae.npz", "no such file"]),
    ],
)
def test_bad_settings(job: Path, paliscribe: Paliscribe, values: dict[str, object], words: list[str]) -> None:
    output = Path(job).parent / "o"
    refused(paliscribe("annotate", change(job, **values), "--quiet"), *words)
    assert not output.exists()


def test_a_refusal_leaves_a_folder_that_was_there(job: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    (tmp_path / "o").mkdir()
    refused(paliscribe("annotate", change(job, manifest="/nowhere.jsonl"), "--quiet"), "no such file")
    assert (tmp_path / "o").exists()


def test_an_output_that_cannot_be_written(job: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(paliscribe("annotate", change(job, output=str(tmp_path / "file" / "o")), "-q"), "output ", "file")


def test_duplicate_ids(collection: Path, job: Path, tmp_path: Path, paliscribe: Paliscribe) -> None:
    rows = read_rows(collection)
    manifest = write_rows(tmp_path / "twice.jsonl", rows + rows[:2])
    refused(paliscribe("annotate", change(job, manifest=str(manifest)), "-q"), rows[0]["id"], rows[1]["id"])


def test_commands_that_need_a_run(tmp_path: Path, paliscribe: Paliscribe) -> None:
    refused(paliscribe("status", tmp_path), "no run is here")
    refused(paliscribe("retry", tmp_path), "no run is here")
    flags = ["--manifest", tmp_path, "--task", "ocr", "--output", tmp_path]
    refused(paliscribe("annotate", *flags, "--append"), "no run is here to append to; leave out --append to begin one")
    refused(paliscribe("ask", tmp_path / "nothing.jpg", "ocr"), "no such file")


@pytest.mark.cluster
@pytest.mark.usefixtures("served")
def test_a_changed_run_is_refused_and_the_difference_named(
    collection: Path, tmp_path: Path, paliscribe: Paliscribe
) -> None:
    manifest = write_rows(
        tmp_path / "m.jsonl",
        [row | {"image": str(collection.parent / row["image"])} for row in read_rows(collection)[:4]],
    )
    flags = ["--manifest", manifest, "--output", tmp_path / "o", "--quiet"]
    assert paliscribe("annotate", *flags, "--task", "ocr").code == 0
    refused(
        paliscribe("annotate", *flags, *task_flags("ocr", "caption en")),
        "differs in tasks ('ocr' then, 'ocr', 'caption en' now)",
    )
    refused(
        paliscribe("annotate", *flags, "--task", "ocr", "--model", CHECKPOINT),
        f"differs in model ('demo' then, '{CHECKPOINT}' now)",
    )
    refused(
        paliscribe("annotate", *flags, "--task", "ocr", "--shard-rows", "3"), "differs in shard_rows (256 then, 3 now)"
    )
    write_rows(manifest, read_rows(manifest)[:3])
    refused(
        paliscribe("annotate", *flags, "--task", "ocr"),
        "differs in the manifest (4 rows then, 3 rows now, or other content)",
    )


def test_a_gated_model(collection: Path, tmp_path: Path, hub: str) -> None:
    """In a process of its own: the hub's address is read when its client is imported."""
    command = [
        "annotate",
        "--manifest",
        collection,
        "--output",
        tmp_path / "o",
        "--task",
        "ocr",
        "--model",
        "acme/gated",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "paliscribe", *map(str, command)],
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "paliscribe: model acme/gated is gated: accept its licence at https://huggingface.co/acme/gated, "
        "then set HF_TOKEN to a token of that account"
    )
    assert "Traceback" not in done.stderr
