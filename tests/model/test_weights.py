"""Models are found, and what is wrong with one is said in a line, before anything is started."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import BRANCHES, COMMIT

from paliscribe.config import ModelSpec
from paliscribe.errors import UsageError
from paliscribe.model.weights import locate


def said(code: str, **environment: str) -> str:
    """What an expression over `ModelSpec` prints in a process of its own, where addresses and caches can be set."""
    code = (
        "from paliscribe.config import ModelSpec; from paliscribe.errors import UsageError\n"
        "from paliscribe.model.weights import locate\n"
        f"try: print({code})\n"
        "except UsageError as error: print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def located(hub: str, cache: Path, model: str, revision: str | None = None, precision: str = "auto") -> str:
    code = f"locate(ModelSpec(id={model!r}, revision={revision!r}, precision={precision!r}))"
    return said(code, HF_ENDPOINT=hub, HF_HOME=str(cache))


def answer(spec: str) -> str:
    """Code that loads a model and answers one request; prints its revision and the answer."""
    return (
        f"(lambda model: (model.located.revision, __import__('paliscribe.engine').engine.Engine(model).run("
        "[__import__('paliscribe.records').records.Request('a', 'caption en', "
        "__import__('numpy').zeros((112, 112, 3), 'uint8'), 'a', 8)])[0].finish_reason))"
        f"(__import__('paliscribe.model.paligemma').model.paligemma.load({spec}, device='cpu'))"
    )


def test_a_model_of_the_hub_is_pinned_to_its_commit(hub: str, tmp_path: Path) -> None:
    assert located(hub, tmp_path, "acme/paligemma") == (
        f"Located(path='acme/paligemma', revision='{COMMIT}', image_size=448, family='gemma')"
    )


@pytest.mark.parametrize(
    ("model", "revision", "words"),
    [
        ("acme/gated", None, "accept its licence at https://huggingface.co/acme/gated, then set HF_TOKEN"),
        ("acme/nothing", None, "no such repository on Hugging Face"),
        ("acme/no-config", None, "no config.json"),
        ("acme/bert", None, "is a bert, not a PaliGemma"),
        ("acme/paligemma", "no-such-branch", "has no revision 'no-such-branch'"),
        ("a/b/c", None, "neither a folder nor a Hugging Face id"),
        ("acme/cut", None, "Hugging Face"),
        ("acme/pickled", None, "has no .safetensors file"),
    ],
)
def test_refusals_are_one_clear_line(hub: str, tmp_path: Path, model: str, revision: str | None, words: str) -> None:
    words_said = located(hub, tmp_path, model, revision)
    assert words_said.startswith("refused: ") and words in words_said and "\n" not in words_said


def test_no_hub_to_be_reached(tmp_path: Path) -> None:
    assert "cannot be reached" in located("http://127.0.0.1:9", tmp_path, "acme/paligemma")


@pytest.mark.parametrize(
    ("model", "precision", "commit"),
    [
        ("google/paligemma-3b-demo", "bfloat16", BRANCHES["bfloat16"]),
        ("google/paligemma-3b-demo", "float16", BRANCHES["float16"]),
        ("google/paligemma-3b-demo", "float32", COMMIT),
        ("google/paligemma2-3b-demo", "bfloat16", COMMIT),
        ("acme/paligemma-3b-demo", "bfloat16", COMMIT),
    ],
)
def test_paligemma_1_has_a_branch_for_each_precision(
    hub: str, tmp_path: Path, model: str, precision: str, commit: str
) -> None:
    assert f"revision='{commit}'" in located(hub, tmp_path, model, precision=precision)
    assert f"revision='{COMMIT}'" in located(hub, tmp_path, model, "main", precision)


def test_a_missing_branch_means_main(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BRANCHES, "float16")
    assert f"revision='{COMMIT}'" in located(hub, tmp_path, "google/paligemma-3b-demo", precision="float16")


def test_a_model_of_the_hub_is_loaded_at_its_commit(hub: str, tmp_path: Path) -> None:
    spec = "ModelSpec(id='google/paligemma-3b-demo', precision='float16')"
    found = said(answer(spec), HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert found == str((BRANCHES["float16"], "stop"))
    pinned = f"ModelSpec(id='google/paligemma-3b-demo', revision={BRANCHES['float16']!r}, precision='float16')"
    offline = said(answer(pinned), HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert offline == found, "what is cached needs no hub"


@pytest.mark.parametrize("fault", ["no processor", "truncated weights", "remote code"])
def test_a_model_that_cannot_be_loaded_says_so_in_a_line(tmp_path: Path, fault: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(locate(ModelSpec()).path, copy)
    if fault == "no processor":
        (copy / "tokenizer.json").unlink()
        (copy / "processor_config.json").unlink(missing_ok=True)
        (copy / "preprocessor_config.json").unlink(missing_ok=True)
    elif fault == "truncated weights":
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    else:
        ran = f"open({str(tmp_path / 'ran')!r}, 'w')"
        (copy / "own.py").write_text(f"{ran}\nclass Own: pass\n")
        config = json.loads((copy / "config.json").read_text())
        config["auto_map"] = {"AutoModelForImageTextToText": "own.Own", "AutoConfig": "own.Own"}
        (copy / "config.json").write_text(json.dumps(config))
        found = said(answer(f"ModelSpec(id={str(copy)!r})"))
        assert not (tmp_path / "ran").exists() and found.endswith("'stop')"), "the code of transformers itself is used"
        return
    found = said(answer(f"ModelSpec(id={str(copy)!r})"))
    assert found.startswith(f"refused: model {copy} cannot be loaded: ") and "\n" not in found


def test_the_demo_and_folders(tmp_path: Path) -> None:
    demo = locate(ModelSpec())
    assert demo.is_folder and demo.image_size == 112 and demo.family == "gemma"
    copy = tmp_path / "copy"
    shutil.copytree(demo.path, copy)
    assert locate(ModelSpec(id=str(copy))).revision == demo.revision
    with (copy / "model.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert locate(ModelSpec(id=str(copy))).revision != demo.revision
    with pytest.raises(UsageError, match="only Hugging Face repositories have revisions"):
        locate(ModelSpec(id=str(copy), revision="main"))
    assert locate(ModelSpec(id=demo.path, revision=demo.revision)) == demo
    with pytest.raises(UsageError, match=f"now, not at {demo.revision}"):
        locate(ModelSpec(id=str(copy), revision=demo.revision))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \.safetensors"):
        locate(ModelSpec(id=str(copy)))
    (copy / "config.json").write_text("[")
    (copy / "pytorch_model.bin").rename(copy / "model.safetensors")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        locate(ModelSpec(id=str(copy)))
    (copy / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        locate(ModelSpec(id=str(copy)))
    with pytest.raises(UsageError, match="no such folder"):
        locate(ModelSpec(id=str(tmp_path / "nothing")))
