"""Models are found, and what is wrong with one is said in a line, before anything is started."""

import json
import os
import shutil
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
from hub import BRANCHES, COMMIT

from paliscribe.config import ModelSpec
from paliscribe.engine import Engine
from paliscribe.errors import UsageError
from paliscribe.model import paligemma
from paliscribe.model.weights import locate
from paliscribe.records import Request


def said(*expressions: str, **environment: str) -> list[str]:
    """What expressions over `ModelSpec` print in one process of its own, where addresses and caches can be set."""
    code = (
        "from paliscribe.config import ModelSpec; from paliscribe.errors import UsageError\n"
        "from paliscribe.model.weights import locate\n"
    )
    for expression in expressions:
        code += f"try: print(repr(str({expression})))\nexcept UsageError as error: print(repr(f'refused: {{error}}'))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return [literal_eval(line) for line in done.stdout.splitlines()]


def spec(model: str, revision: str | None = None, precision: str = "auto") -> str:
    return f"ModelSpec(id={model!r}, revision={revision!r}, precision={precision!r})"


def located(hub: str, cache: Path, *specs: str) -> list[str]:
    """What `locate` says of each of these models of the hub."""
    return said(*(f"locate({each})" for each in specs), HF_ENDPOINT=hub, HF_HOME=str(cache))


LOADED = "__import__('paliscribe.model.paligemma').model.paligemma.load({}, device='cpu')"


def answer(spec: str) -> str:
    """An expression that loads a model and answers one request: its revision and how the answer ended."""
    return (
        f"(lambda model: (model.located.revision, __import__('paliscribe.engine').engine.Engine(model).run("
        "[__import__('paliscribe.records').records.Request('a', 'caption en', "
        "__import__('numpy').zeros((112, 112, 3), 'uint8'), 'a', 8)])[0].finish_reason))"
        f"({LOADED.format(spec)})"
    )


def test_a_model_of_the_hub_is_pinned_to_its_commit(hub: str, tmp_path: Path) -> None:
    assert located(hub, tmp_path, spec("acme/paligemma")) == [
        f"Located(path='acme/paligemma', revision='{COMMIT}', image_size=448, family='gemma')"
    ]


REFUSED = [
    ("acme/gated", None, "accept its licence at https://huggingface.co/acme/gated, then set HF_TOKEN"),
    ("acme/nothing", None, "no such repository on Hugging Face"),
    ("acme/no-config", None, "no config.json"),
    ("acme/bert", None, "is a bert, not a PaliGemma"),
    ("acme/paligemma", "no-such-branch", "has no revision 'no-such-branch'"),
    ("a/b/c", None, "neither a folder nor a Hugging Face id"),
    ("acme/cut", None, "Hugging Face"),
    ("acme/pickled", None, "has no .safetensors file"),
]


def test_refusals_are_one_clear_line(hub: str, tmp_path: Path) -> None:
    found = located(hub, tmp_path, *(spec(model, revision) for model, revision, _ in REFUSED))
    for (model, _, words), words_said in zip(REFUSED, found, strict=True):
        assert words_said.startswith("refused: ") and words in words_said and "\n" not in words_said, model


def test_no_hub_to_be_reached(tmp_path: Path) -> None:
    at_once = "setattr(__import__('time'), 'sleep', lambda _: None)"  # its client waits 23 s in all between attempts
    _, words = said(
        at_once, f"locate({spec('acme/paligemma')})", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path)
    )
    assert "cannot be reached" in words


BRANCH_OF = [
    ("google/paligemma-3b-demo", "bfloat16", BRANCHES["bfloat16"]),
    ("google/paligemma-3b-demo", "float16", BRANCHES["float16"]),
    ("google/paligemma-3b-demo", "float32", COMMIT),
    ("google/paligemma2-3b-demo", "bfloat16", COMMIT),
    ("acme/paligemma-3b-demo", "bfloat16", COMMIT),
]


def test_paligemma_1_has_a_branch_for_each_precision(hub: str, tmp_path: Path) -> None:
    by_default = located(hub, tmp_path, *(spec(model, None, precision) for model, precision, _ in BRANCH_OF))
    of_main = located(hub, tmp_path, *(spec(model, "main", precision) for model, precision, _ in BRANCH_OF))
    for case, default, main in zip(BRANCH_OF, by_default, of_main, strict=True):
        assert f"revision='{case[2]}'" in default and f"revision='{COMMIT}'" in main, case


def test_a_missing_branch_means_main(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BRANCHES, "float16")
    [found] = located(hub, tmp_path, spec("google/paligemma-3b-demo", None, "float16"))
    assert f"revision='{COMMIT}'" in found


@pytest.mark.long
def test_a_model_of_the_hub_is_loaded_at_its_commit(hub: str, tmp_path: Path) -> None:
    model = "google/paligemma-3b-demo"
    found = said(answer(spec(model, None, "float16")), HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert found == [str((BRANCHES["float16"], "stop"))]
    pinned = f"{LOADED.format(spec(model, BRANCHES['float16'], 'float16'))}.located.revision"
    offline = said(pinned, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert offline == [BRANCHES["float16"]], "what is cached needs no hub"


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
        request = Request("a", "caption en", np.zeros((112, 112, 3), np.uint8), "a", 8)
        [found] = Engine(paligemma.load(ModelSpec(id=str(copy)), device="cpu")).run([request])
        assert not (tmp_path / "ran").exists() and found.finish_reason == "stop", "the code of transformers itself runs"
        return
    with pytest.raises(UsageError, match=f"^model {copy} cannot be loaded: ") as refused:
        paligemma.load(ModelSpec(id=str(copy)), device="cpu")
    assert "\n" not in str(refused.value)


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
