"""The arithmetic of the full size is the known one, the bench's code runs where there is no GPU, and it prints no
figure of an engine whose answers are wrong."""

import argparse
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import baseline, full_size, gpu, gpu_checks, gpu_rates
from bench.baseline import Subject
from bench.gpu_words import words
from bench.machine import machine, release
from paliscribe.engine import Engine
from paliscribe.records import Prediction

pytestmark = pytest.mark.long

torch.set_num_threads(1)
SMALL = ["--small", "--tokens", "3", "--longest", "4", "--rounds", "1", "--images", "3", "--json"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return full_size.subject("gemma", 224, "cpu", "float32", small=True)


@pytest.fixture
def tamper(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace fields of the first answer of every run of an engine."""

    def changed(**values: Any) -> None:
        original = Engine.run

        def run(engine: Engine, requests: Any) -> list[Prediction]:
            first, *rest = original(engine, requests)
            return [replace(first, **values), *rest]

        monkeypatch.setattr(Engine, "run", run)

    return changed


@pytest.mark.parametrize(("pixels", "gflop", "vision"), [(224, 1286, 0.17), (448, 5236, 0.19), (896, 24241, 0.23)])
def test_arithmetic_of_an_image(pixels: int, gflop: int, vision: float) -> None:
    work = full_size.work(full_size.config("gemma", pixels), prompt=10, answer=20)
    assert round(work.vision + work.prefill) == gflop
    assert round(work.vision / (work.vision + work.prefill), 2) == vision
    assert work.token_bytes == 18 * 1024
    assert round(work.weight_bytes / 1e9, 1) == 5.0
    assert work.total == work.vision + work.prefill + work.decode


def test_arithmetic_agrees_with_what_runs() -> None:
    """PyTorch's own counter of operations, on a forward pass of the miniature."""
    from torch.utils.flop_counter import FlopCounterMode

    subject = full_size.subject("gemma", 224, "cpu", "float32", small=True)
    tokens = 256 + 12
    ids = torch.tensor([[full_size.IMAGE_TOKEN] * 256 + [7] * 12])
    subject.network.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        subject.network(
            input_ids=ids,
            attention_mask=torch.ones(1, tokens, dtype=torch.int64),
            token_type_ids=torch.zeros(1, tokens, dtype=torch.int64),
            pixel_values=torch.zeros(1, 3, 224, 224),
            logits_to_keep=1,
        )
    work = full_size.work(subject.network.config, prompt=12, answer=1)
    assert work.decode == 0
    assert counter.get_total_flops() == pytest.approx(work.total * 1e9, rel=1e-3)


def test_the_model_is_the_full_size_and_both_forms_share_its_weights() -> None:
    from transformers import PaliGemmaForConditionalGeneration

    with torch.device("meta"):
        network = PaliGemmaForConditionalGeneration(full_size.config("gemma", 224))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(2.92e9, rel=0.01)
    subject = full_size.subject("gemma2", 224, "cpu", "bfloat16", small=True)
    ours, theirs = subject.model.network, subject.network
    assert ours.lm_head.weight.data_ptr() == theirs.lm_head.weight.data_ptr()
    norms = [type(network.model.language_model.norm) for network in (ours, theirs)]
    assert norms[0] is not norms[1], "ours is changed for the engine, theirs is as transformers has it"


def test_of_as_many_mixed_lengths_as_there_are_each_occurs_once() -> None:
    lengths = full_size.mixed_lengths(150, 60)
    assert len(lengths) == 150 and lengths == full_size.mixed_lengths(150, 60)
    assert sorted(lengths[:60]) == sorted(lengths[60:120]) == list(range(1, 61))
    assert lengths[:60] != lengths[60:120]
    assert [request.max_tokens for request in full_size.requests(14, 5, lengths)] == lengths[:5]


@pytest.mark.full
def test_the_last_line_is_the_figures_and_parts_free_what_they_held(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    networks: list[weakref.ref[Any]] = []
    made = full_size.subject

    def engine(*arguments: Any, **options: Any) -> Engine:
        built = Engine(*arguments, **options)
        held.append(weakref.ref(built))
        return built

    def subject(*arguments: Any, **options: Any) -> Subject:
        built = made(*arguments, **options)
        networks.extend((weakref.ref(built.network), weakref.ref(built.model)))
        return built

    def released(device: str) -> None:
        release(device)
        assert [ref() for ref in held] == [None] * len(held), "a part that is done still holds its engine"

    for module in (gpu_checks, gpu_rates):
        monkeypatch.setattr(module, "Engine", engine)
    monkeypatch.setattr(full_size, "subject", subject)
    monkeypatch.setattr(gpu, "release", released)
    gpu.main(SMALL)
    *table, last = capsys.readouterr().out.splitlines()
    assert len(held) == 6 and [ref() for ref in networks] == [None, None]
    assert any("100.0% of 8 answers" in line for line in table)
    assert not any("targets" in line for line in table), "there are none for a CPU"
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"}
    methods = ("generate-1", "generate-2", "static-2", "best-generate")
    ratios = {f"224/{load}/{method}" for load in ("equal", "mixed") for method in methods}
    others = {"224/equal/share-of-product", "224/invariance/alone", "224/invariance/shuffled"}
    assert set(found["ratios"]) == ratios | others
    figures = found["figures"]["224"]
    for load in ("equal", "mixed"):
        assert figures[load]["ratios"]["best-generate"] == min(figures[load]["ratios"].values())
        assert set(figures[load]["same_answers"].values()) == {1.0}
    assert figures["check"]["first_logits"]["relative"] < 1e-5 and figures["check"]["answers"]["same"] == 1
    assert [shares["answers"] for shares in figures["invariance"].values()] == [1, 1]
    assert 0 < figures["latency"]["saturated"]["median"] <= figures["latency"]["saturated"]["worst"]
    assert all(step["ms"] > 0 for step in figures["steps"].values())
    assert figures["equal"]["memory"]["slots"] > 0 and figures["gflop"]["total"] > 0


def test_a_static_cache_that_fails_is_reported(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    original = baseline.generate

    def generate(subject: Subject, prepared: Any, **options: Any) -> Any:
        if options:
            raise AttributeError("'dict' object\nhas no attribute 'ndim'")
        return original(subject, prepared)

    monkeypatch.setattr(baseline, "generate", generate)
    found = gpu_rates.rates(subject, full_size.requests(224, 2, 2), [2], 2, 1)
    assert found["failed"] == {"static-2": "AttributeError: 'dict' object has no attribute 'ndim'"}
    assert set(found["images_per_second"]) == {"engine", "generate-2"}
    assert "static-2       failed: AttributeError" in words("equal", found, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"error_kind": "model", "error_message": "no memory"}, "request 0 was refused: model: no memory"),
        ({"tokens": (1, 2)}, "request 0 has 2 tokens instead of 3"),
    ],
)
def test_without_all_answers_there_is_no_rate(
    capsys: pytest.CaptureFixture[str], tamper: Callable[..., None], values: dict[str, Any], reason: str
) -> None:
    tamper(**values)
    with pytest.raises(SystemExit, match=reason):
        gpu.main([*SMALL, "--parts", "equal", "--batches", "2", "--static", "0"])
    *table, last = capsys.readouterr().out.splitlines()
    assert any(f"equal: NO FIGURES, engine: {reason}" in line for line in table)
    assert not any("images/s" in line for line in table)
    assert "images_per_second" not in last and json.loads(last)["ratios"] == {}


def test_without_all_tokens_of_generate_there_is_no_rate(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    original = baseline.generate
    monkeypatch.setattr(baseline, "generate", lambda *a, **o: [rows[:, 1:] for rows in original(*a, **o)])
    with pytest.raises(gpu_rates.NoRate, match="generate-2: answers are not of 3 tokens each"):
        gpu_rates.rates(subject, full_size.requests(224, 2, 3), [2], 0, 1)


def test_out_of_memory_is_reported_and_what_it_held_is_freed(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    original = baseline.generate

    def generate(subject: Subject, prepared: Any, **options: Any) -> Any:
        assert [ref() for ref in held] == [None] * len(held), "the failed attempt is still held"
        if len(prepared[0].inputs["input_ids"]) == 1:
            return original(subject, prepared, **options)
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(baseline, "generate", generate)
    found = gpu_rates.rates(subject, full_size.requests(224, 3, 2), [2, 1, 3], 0, 1)
    assert found["failed"] == {"generate-2": "out of memory", "generate-3": "out of memory"}
    assert set(found["images_per_second"]) == {"engine", "generate-1"} and len(held) == 2


def test_a_wrong_token_ends_the_bench_and_a_near_tie_does_not(
    capsys: pytest.CaptureFixture[str], tamper: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper(tokens=(5, 6))
    with pytest.raises(SystemExit, match=r"1 of 8 answers differ from model\.generate.* token 5 instead of"):
        gpu.main([*SMALL, "--parts", "check"])
    assert "images/s" not in capsys.readouterr().out
    monkeypatch.setattr(gpu_checks, "NEAR_TIE", 1e3)
    found = gpu_checks.demo("cpu", 4)
    assert found["same"] == 0.75
    (tie,) = found["near_ties"]
    assert (tie["step"], tie["ours"]) == (0, 5) and 0 < tie["gap"] < 1e3


@pytest.mark.parametrize("values", [{"tokens": ()}, {"error_kind": "model", "error_message": "no memory"}])
def test_a_missing_token_or_answer_is_never_a_near_tie(
    subject: Subject, tamper: Callable[..., None], values: dict[str, Any]
) -> None:
    tamper(**values)
    wanted = full_size.requests(224, 1, 2)
    references = gpu_checks.references(subject, wanted, 1)
    with pytest.raises(gpu_checks.WrongAnswer):
        gpu_checks.compare_answers(wanted, Engine(subject.model).run(wanted), references, 1e9)


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_first_logits_are_compared_with_float32(family: str) -> None:
    subject = full_size.subject(family, 224, "cpu", "bfloat16", small=True)
    wanted = full_size.requests(224, 2, 1)
    found = gpu_checks.own_precision(subject, wanted, 2)
    assert found["tolerance"] == 8 / 128
    assert 1e-4 < found["first_logits"]["relative"] < found["tolerance"], "it is not float32 that was compared"
    assert family == "gemma2" or found["first_logits"]["same_token"] == 1, "untrained, Gemma 2 has near-ties"
    assert subject.network.dtype == torch.bfloat16, "the reference is a copy"


def test_first_logits_that_are_off_end_the_bench(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = full_size.requests(224, 2, 1)
    exact = gpu_checks.first_logits(subject, wanted)
    for off in (exact + 0.001 * exact.std() * torch.randn_like(exact), torch.full_like(exact, torch.nan)):
        monkeypatch.setattr(gpu_checks, "first_logits", lambda *_, off=off: off)
        with pytest.raises(gpu_checks.WrongAnswer, match=r"first logits are .* off those of float32"):
            gpu_checks.own_precision(subject, wanted, 2)


def test_an_online_request_that_is_refused_leaves_no_time(subject: Subject) -> None:
    batch = [replace(request, pixels=np.zeros((2, 2, 3), np.uint8)) for request in full_size.requests(224, 2, 2)]
    with pytest.raises(gpu_rates.NoRate, match="online: request online-0 was refused: model: pixels are"):
        gpu_rates.first_tokens(subject, batch, 2)


def test_targets_apply_to_their_gpu_and_load_only() -> None:
    options = gpu._options([])
    found = {
        "equal": {"images_per_second": {"engine": 300.0}},
        "mixed": {"ratios": {"best-generate": 1.6}},
        "latency": {"saturated": {"worst": 120.0}},
    }
    lines = gpu.compare_targets("NVIDIA H100 80GB HBM3", options, found)
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["not reached", "reached", "not reached"]
    lines = gpu.compare_targets("NVIDIA H100 80GB HBM3", options, {"latency": {"saturated": {"worst": 90.0}}})
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["not measured", "not measured", "reached"]
    assert gpu.compare_targets("NVIDIA A100", options, found) == gpu.compare_targets(None, options, found) == []
    other = argparse.Namespace(**vars(options) | {"tokens": 21})
    assert gpu.compare_targets("NVIDIA H100 80GB HBM3", other, found) == []


def test_a_machine_without_git_or_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert machine()["commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine()["commit"] is None


def test_every_answer_has_its_length_and_equals_generate(subject: Subject) -> None:
    wanted = full_size.requests(224, 4, 6)
    ours = Engine(subject.model).run(wanted)
    theirs = baseline.generate(subject, baseline.batches(subject, wanted, 2))
    assert [list(answer.tokens) for answer in ours] == [row.tolist() for output in theirs for row in output]
    assert all(len(answer.tokens) == 6 for answer in ours)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="no GPU found"):
        gpu.main([])
