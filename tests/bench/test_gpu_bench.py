"""The arithmetic of the full size is the known one, and the bench's code runs where there is no GPU."""

import json

import pytest
import torch

from bench import full_size, gpu


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
    assert ours.config.text_config._attn_implementation != theirs.config.text_config._attn_implementation


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_the_last_line_is_the_figures(capsys: pytest.CaptureFixture[str], family: str) -> None:
    words = ["--small", "--family", family, "--pixels", "224", "--images", "6", "--batches", "1", "2"]
    gpu.main([*words, "--rounds", "1", "--tokens", "4", "--precision", "float32", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    assert any("100.0% of 32 answers" in line for line in table)
    found = json.loads(last)
    assert set(found) == {"machine", "figures", "ratios"}
    names = ("generate-1", "generate-2", "best-generate", "share-of-product")
    assert set(found["ratios"]) == {f"224/{name}" for name in names}
    figures = found["figures"]["224"]
    assert figures["ratios"]["best-generate"] == min(figures["ratios"].values())
    assert all(step["ms"] > 0 for step in figures["steps"].values())
    assert figures["memory"]["slots"] > 0 and figures["gflop"] > 0


def test_every_answer_has_its_length_and_equals_generate() -> None:
    from bench import baseline
    from pipeline.engine import Engine

    subject = full_size.subject("gemma", 224, "cpu", "float32", small=True)
    wanted = gpu.requests(224, 4, 6)
    ours = Engine(subject.model).run(wanted)
    theirs = baseline.generate(subject, baseline.batches(subject, wanted, 2))
    assert [list(answer.tokens) for answer in ours] == [row.tolist() for output in theirs for row in output]
    assert all(len(answer.tokens) == 6 for answer in ours)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main([])
