"""The engine against `model.generate` one request at a time: the same tokens, whatever the company."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, PaliGemmaConfig, PaliGemmaForConditionalGeneration

from pipeline import model as model_module
from pipeline.config import ModelSpec
from pipeline.engine import Engine
from pipeline.errors import ReplicaError
from pipeline.model import Model
from pipeline.records import ONLINE, Prediction, Request
from pipeline.weights import locate

torch.set_num_threads(1)
PROMPTS = (
    "caption en",
    "answer en how many circles are there?",
    "ocr",
    "detect red circle ; blue square ; green star",
    "answer en what color is the square?",
)


@pytest.fixture(scope="module")
def demo() -> Model:
    return model_module.load(ModelSpec(id="demo"), device="cpu")


def random_model(demo: Model, seed: int, family: str = "gemma") -> Model:
    """A model of random weights with the demo's tokenizer: its answers are long, odd and sensitive."""
    config = PaliGemmaConfig.from_pretrained(demo.located.path)
    text = config.text_config.to_dict()
    if family == "gemma2":
        text = {k: v for k, v in text.items() if k not in {"model_type", "architectures"}}
        text |= {"model_type": "gemma2", "query_pre_attn_scalar": 32, "sliding_window": 4096}
        text |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "layer_types": None}
        config = PaliGemmaConfig(
            vision_config=config.vision_config.to_dict(),
            text_config=text,
            image_token_id=config.image_token_id,
            projection_dim=config.projection_dim,
        )
    torch.manual_seed(seed)
    network = PaliGemmaForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    for parameter in network.parameters():
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    network.lm_head.weight = torch.nn.Parameter(torch.randn_like(network.lm_head.weight))  # tied, it repeats itself
    network.generation_config.eos_token_id = list(range(5, 1411, 11))  # a random model ends now and then too
    return Model(network, demo.tokenizer, demo.located, demo.spec)


def images(count: int, size: int = 112) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def requests(count: int, max_tokens: int = 24) -> list[Request]:
    pictures = images(4)
    return [
        Request(f"r{i}", PROMPTS[i % len(PROMPTS)], pictures[i % 4], f"image-{i % 4}", max_tokens - i % 7)
        for i in range(count)
    ]


def generate(model: Model, request: Request) -> tuple[int, ...]:
    """What transformers answers to one request on its own, through its own processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model.located.path)
    inputs = processor(images=request.pixels, text=f"<image>{request.prompt}", return_tensors="pt")
    output = model.network.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tuple(answer[:-1] if answer[-1] in model.end_tokens else answer)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_equals_generate_one_by_one(demo: Model, seed: int, family: str) -> None:
    model = random_model(demo, seed, family)
    wanted = requests(20)
    answers = Engine(model, group_size=7).run(wanted)
    alone = [generate(model, request) for request in wanted]
    assert [answer.tokens for answer in answers] == alone
    assert len({len(tokens) for tokens in alone}) > 3, "the test needs answers of many lengths"
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_prompt_tokens_are_the_processors(demo: Model) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(demo.located.path)
    for prompt in PROMPTS:
        ids = processor(images=images(1)[0], text=f"<image>{prompt}", return_tensors="pt")["input_ids"][0].tolist()
        assert ids[demo.image_tokens :] == demo.tokenize(prompt)


def test_logprobs_are_those_of_the_chosen_tokens(demo: Model) -> None:
    model = random_model(demo, 3)
    request = requests(1)[0]
    answer = Engine(model).run([request])[0]
    features = model.embed_images(torch.from_numpy(request.pixels)[None])
    logits, state = model.prefill(features, [model.tokenize(request.prompt)])
    for token, logprob in zip(answer.tokens, answer.logprobs, strict=False):
        assert torch.log_softmax(logits[0], 0)[token].item() == pytest.approx(logprob, abs=1e-5)
        logits = model.decode_step(state, torch.tensor([token]))
    assert all(value <= 0 for value in answer.logprobs)


def test_one_vision_pass_an_image(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    embed = demo.embed_images
    monkeypatch.setattr(demo, "embed_images", lambda pixels: (passed.append(len(pixels)), embed(pixels))[1])
    Engine(demo, group_size=3).run(requests(20, max_tokens=8))
    assert sum(passed) == 4


def test_misfits_are_answered_not_raised(demo: Model) -> None:
    good, long, small = requests(3, max_tokens=4)
    long.prompt = "answer en " + "why " * demo.context
    small.pixels = images(1, size=56)[0]
    answers = Engine(demo).run([good, long, small])
    assert [a.error_kind for a in answers] == [None, "prompt_too_long", "model"]
    assert answers[1].error_message is not None and str(demo.context) in answers[1].error_message


def test_a_group_that_fails_costs_only_the_request_at_fault(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = requests(9, max_tokens=6)
    alone = {a.id: a.tokens for a in Engine(demo).run(wanted)}
    prefill = demo.prefill
    poison = demo.tokenize("caption en poison")

    def failing(features: torch.Tensor, prompts: list[list[int]]) -> object:
        if len(prompts) > 4:
            raise torch.OutOfMemoryError("too much")
        if poison in prompts:
            raise RuntimeError("bad request")
        return prefill(features, prompts)

    monkeypatch.setattr(demo, "prefill", failing)
    wanted[4].prompt = "caption en poison"
    answers = Engine(demo).run(wanted)
    assert [a.id for a in answers if a.error_kind == "model"] == ["r4"]
    assert all(a.tokens == alone[a.id] for a in answers if a.error_kind is None)


def test_online_goes_first_and_cancelled_requests_are_forgotten(demo: Model) -> None:
    engine = Engine(demo, group_size=2)
    order: list[str] = []

    def note(future: Future[Prediction]) -> None:
        if not future.cancelled():
            order.append(future.result().id)

    wanted = requests(6, max_tokens=4)
    wanted[5].priority = ONLINE
    futures = [future for request in wanted for future in engine.submit([request])]
    for future in futures:
        future.add_done_callback(note)
    assert engine.cancel(futures[2])
    while engine.step():
        pass
    assert order == ["r5", "r0", "r1", "r3", "r4"]
    assert not engine.cancel(futures[0])


def test_a_thread_answers_and_closing_leaves_nobody_waiting(demo: Model) -> None:
    engine = Engine(demo, group_size=4)
    engine.start()
    assert [f.result(60).error_kind for f in engine.submit(requests(8, max_tokens=4))] == [None] * 8
    pending = engine.submit(requests(200, max_tokens=24))
    engine.close()
    outcomes = [future.exception(60) for future in pending]
    assert any(isinstance(error, ReplicaError) for error in outcomes)
    with pytest.raises(ReplicaError):
        engine.submit(requests(1))
    assert not engine.alive


def test_a_dead_thread_fails_every_request_and_says_so(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise ReplicaError("the device failed")

    monkeypatch.setattr(demo, "prefill", broken)
    engine = Engine(demo)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    engine.start()
    futures = engine.submit(requests(3))
    assert all(isinstance(future.exception(60), ReplicaError) for future in futures)
    assert not engine.alive


def test_the_demo_is_the_genuine_class() -> None:
    located = locate(ModelSpec(id="demo"))
    network = AutoModelForImageTextToText.from_pretrained(located.path)
    assert type(network) is PaliGemmaForConditionalGeneration


@pytest.mark.parametrize("spec", [{"precision": "bfloat16"}, {"quantization": "int8"}, {"quantization": "nf4"}])
def test_other_precisions_load_and_answer(demo: Model, spec: dict[str, str]) -> None:
    other = model_module.load(ModelSpec.model_validate(spec), device="cpu")
    wanted = requests(10, max_tokens=12)
    alike = [
        mine.tokens == exact.tokens
        for mine, exact in zip(Engine(other).run(wanted), Engine(demo).run(wanted), strict=True)
    ]
    assert sum(alike) >= 5, "noise images: answers are fragile, but most must stay"
    weights = other.network.model.language_model.layers[0].mlp.up_proj.weight
    vision = other.network.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    assert (weights.dtype == vision.dtype) == ("quantization" not in spec), "the decoder alone is quantised"
