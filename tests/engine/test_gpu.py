"""What only a GPU can show: CUDA graphs, late reading, copies beside the computation, and real lack of memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import engine, images, random_model, requests, scene_requests

from paliscribe.config import ModelSpec
from paliscribe.engine import Engine, engine_sizes
from paliscribe.engine.sizing import workspace_bytes
from paliscribe.model import paligemma as model_module
from paliscribe.model.paligemma import Model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(**spec: str) -> Model:
    return model_module.load(ModelSpec.model_validate(spec), device="cuda")


def test_float32_equals_the_cpu_with_graphs_recorded() -> None:
    wanted = scene_requests(200)
    graphed = Engine(on_gpu(precision="float32"))
    alone = [answer.tokens for answer in Engine(model_module.load(ModelSpec(), device="cpu")).run(wanted)]
    assert [answer.tokens for answer in graphed.run(wanted)] == alone
    assert graphed._decoder._graphs is not None and graphed._decoder._graphs.recorded > 1


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_random_models_equal_their_cpu_answers(family: str) -> None:
    """Long answers of models that are sensitive; a token differs where two logits are as good as equal."""
    model, _ = random_model(5, family)
    wanted = requests(24)
    alone = [answer.tokens for answer in Engine(model).run(wanted)]
    random_model.cache_clear()
    model.network.to("cuda")
    try:
        same = [a.tokens == b for a, b in zip(engine(model, slots=7).run(wanted), alone, strict=True)]
    finally:
        model.network.to("cpu")
    assert sum(same) >= 22


@pytest.mark.parametrize(
    ("spec", "graphs"),
    [
        ({"precision": "bfloat16"}, True),
        ({"precision": "float16"}, True),
        ({"quantization": "nf4"}, True),
        ({"quantization": "int8"}, False),
    ],
)
def test_other_precisions_answer_mostly_alike(spec: dict[str, str], graphs: bool) -> None:
    wanted = scene_requests(80)
    alone = [answer.tokens for answer in Engine(on_gpu(precision="float32")).run(wanted)]
    other = Engine(on_gpu(**spec))
    same = [answer.tokens == tokens for answer, tokens in zip(other.run(wanted), alone, strict=True)]
    assert sum(same) >= 56
    assert other._decoder._graphs is not None and (other._decoder._graphs.recorded > 0) == graphs


def test_pixels_arrive_as_they_were_sent() -> None:
    model = on_gpu()
    for _ in range(20):
        sent = images(16)
        assert np.array_equal(model.upload(sent).cpu().numpy(), np.stack(sent))


def test_lack_of_memory_makes_groups_smaller_and_loses_nobody() -> None:
    model = on_gpu(precision="float32")
    wanted = requests(64, max_tokens=8, pictures=64)
    alone = {answer.id: answer.tokens for answer in Engine(model).run(wanted)}
    sizes = engine_sizes(model)
    greedy = Engine(model, replace(sizes, limits=replace(sizes.limits, prefill_tokens=2**20, gather=1)))
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated() + 48 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
    try:
        answers = greedy.run(wanted)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert {answer.id: answer.tokens for answer in answers} == alone
    assert greedy._scheduler.limits.prefill_tokens < 2**20, "the first group must have been too much"


def test_equal_seeds_draw_equal_answers_in_any_company() -> None:
    model = on_gpu(precision="float32")
    drawn = [replace(request, temperature=0.8, top_p=0.9, seed=n) for n, request in enumerate(requests(12))]
    together = [answer.tokens for answer in Engine(model).run(drawn)]
    alone = [Engine(model).run([request])[0].tokens for request in drawn]
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 11


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_company_changes_no_bit(precision: str) -> None:
    model = on_gpu(precision=precision)
    wanted = scene_requests(60)
    alone = [Engine(model).run([request])[0] for request in wanted]
    assert engine(model, slots=7).run(wanted) == alone
    assert engine(model, slots=40).run(wanted) == alone


def test_what_steps_need_beside_slots_was_not_guessed_too_low() -> None:
    """Graphs, logits and draws of a full step, against the estimate that sizing leaves free for them."""
    model = on_gpu()
    torch.cuda.synchronize()
    running = Engine(model)
    before = torch.cuda.memory_reserved()
    running.start()
    try:
        running.submit([replace(request, temperature=0.8) for request in requests(300, max_tokens=8)])[-1].result(300)
        assert torch.cuda.memory_reserved() - before < workspace_bytes(model) + 2**30
    finally:
        running.close()
