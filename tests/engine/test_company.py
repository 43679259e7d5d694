"""The same bits alone and in company: tokens and log-probabilities, in every precision, whoever shares the steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.company import FAMILIES, alone, differing, load, made, together
from models import engine, images, random_model, requests
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from paliscribe.model import attention as attention_module
from paliscribe.model import probe
from paliscribe.model.kv_cache import Slots, round_up
from paliscribe.model.paligemma import DTYPES, Model
from paliscribe.model.shapes import Shapes, Sizes

torch.set_num_threads(1)
full = pytest.mark.full
FEW = (64, 256, 384), (1, 4, 8, 16, 24), (1, 2, 4)
TOKENS, ROWS, PICTURES = (Sizes(sizes, call) for sizes, call in zip(FEW, probe.CALLS, strict=True))
MIXED = Shapes(TOKENS, ROWS, PICTURES)


def few_sizes(patch: pytest.MonkeyPatch, cache_folder: str) -> None:
    for name, sizes in zip(("CPU_TOKENS", "CPU_ROWS", "IMAGES"), FEW, strict=True):
        patch.setattr(probe, name, sizes)
    patch.setenv("PALISCRIBE_CACHE", cache_folder)


QUICKEST = [("demo", "float32"), ("gemma", "bfloat16"), ("gemma2", "float16")]
ALL = [(family, precision) for family in FAMILIES for precision in DTYPES]
RANDOM = [each for each in ALL if each[0] != "demo"]
QUICK_RANDOM = [("gemma", "float32"), *QUICKEST[1:]]


def apart(pairs: list[tuple[str, str]], quick: list[tuple[str, str]]) -> list[Any]:
    """Pairs of model and precision; those not among `quick` run with FULL=1 only."""
    return [pair if pair in quick else pytest.param(*pair, marks=full) for pair in pairs]


@pytest.mark.parametrize(("family", "precision"), apart(ALL, QUICKEST))
def test_tokens_and_scores_are_those_alone(family: str, precision: str) -> None:
    model, exact = made(family, precision), precision == "float32"
    wanted = load(family, 60 if exact else 20, max_tokens=24 if exact else 12)
    answers = alone(model, wanted)
    assert len({answer.tokens for answer in answers.values()}) > len(answers) // 4, "the test needs unlike answers"
    some = wanted[::4]
    assert not differing(together(model, some, 1, seed=1), {request.id: answers[request.id] for request in some})
    for slots in (7, 40):
        assert not differing(together(model, wanted, slots), answers)
        assert not differing(together(model, wanted, slots, seed=slots), answers)


# Other paths of the libraries, as they take them on other processors.
PATHS = {
    "MKL_CBWR": ("COMPATIBLE", "AVX2", "AVX512"),
    "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE"),
    "ATEN_CPU_CAPABILITY": ("default",),
}
EXACT, SHORT = ("float32:1", "float32:2"), ("bfloat16:1", "float16:1")
SOME = [
    ("MKL_CBWR", "COMPATIBLE", EXACT + SHORT),
    ("MKL_CBWR", "AVX2", EXACT + SHORT),
    ("ONEDNN_MAX_CPU_ISA", "SSE41", EXACT + SHORT),
]
EVERY = [("", ""), *((name, value) for name, values in PATHS.items() for value in values)]


def on_path(name: str, value: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `company.py` says in a process of its own, under these settings."""
    settings = {"OMP_WAIT_POLICY": "passive", "PALISCRIBE_CACHE": str(folder)} | ({name: value} if name else {})
    environment = {key: said for key, said in os.environ.items() if key not in {*PATHS, "OMP_NUM_THREADS"}} | settings
    script, tests = Path(__file__).with_name("company.py"), Path(__file__).parents[1]
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True)
    if name == "ATEN_CPU_CAPABILITY" and "pack_vnni2 is only supported when avx512 is supported" in done.stderr:
        pytest.skip("torch's attention in bfloat16 goes by the processor, not by ATEN_CPU_CAPABILITY, and fails")
    assert done.returncode == 0, done.stderr[-2000:]
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [line for line in lines if line["differing"]]
    assert all(line["answers"] >= 5 for line in lines), "the test needs unlike answers"
    return lines


@pytest.mark.long
@pytest.mark.parametrize(("name", "value", "ways"), SOME)
def test_it_is_so_on_other_paths_of_the_libraries(name: str, value: str, ways: tuple[str, ...], tmp_path: Path) -> None:
    """Of a small model, on one thread and on two."""
    lines = on_path(name, value, tmp_path, "small", *ways)
    assert len(lines) == len(list(tmp_path.glob("shapes/*.json"))) == len(ways), "each was tried under these settings"


@full
@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("name", "value"), EVERY)
def test_a_thousand_answers_are_those_alone_on_every_path(
    name: str, value: str, precision: str, threads: str, tmp_path: Path
) -> None:
    lines = on_path(name, value, tmp_path, "thousand", f"{precision}:{threads}")
    assert sum(line["requests"] for line in lines) == 1000 and len(lines) == len(FAMILIES)


@full
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_is_so_where_parts_are_compiled(precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`pool.compile`, on few sizes, as each of them is compiled by itself."""
    few_sizes(monkeypatch, str(tmp_path))
    model, wanted = small("gemma", precision), load("gemma", 12, max_tokens=6)
    model.compile()
    answers = alone(model, wanted)
    for slots in (7, 40):
        assert not differing(together(model, wanted, slots, seed=slots), answers)


# Not by luck: products whose order of summation follows from their shape, or even from a row's place in them.


def sum_of(parts: int, left: Tensor, right: Tensor) -> Tensor:
    """[..., m, k] x [..., k, n], as the sum of so many products of a part of k each."""
    pieces = zip(left.tensor_split(parts, dim=-1), right.tensor_split(parts, dim=-2), strict=True)
    found = torch.matmul(*next(pieces))
    for first, second in pieces:
        found = found + torch.matmul(first, second)
    return found


def by_shape(left: Tensor, right: Tensor) -> Tensor:
    rows, columns = left[..., 0].numel(), right.shape[-1]
    return sum_of(1 + (rows * 7 + columns) % 5, left, right)


def by_place(left: Tensor, right: Tensor) -> Tensor:
    """The first half of the rows has another order than the second; one row is a second half."""
    one, other = sum_of(1, left, right), sum_of(3, left, right)
    first = torch.arange(one[..., 0].numel()) < one[..., 0].numel() // 2
    return torch.where(first.view(one.shape[:-1])[..., None], one, other)


Product = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Model, Product], None]:
    """Gives all products of a model to a function, and has it forget the sizes it knew."""

    def install(model: Model, multiply: Product) -> None:
        def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            found = multiply(rows, weight.t())
            return found if bias is None else found + bias

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            return multiply(torch.softmax(multiply(query, key.mT) * scale, dim=-1), value)

        few_sizes(monkeypatch, str(tmp_path))
        monkeypatch.setattr(model, "_shapes", {})
        monkeypatch.setattr(functional, "linear", linear)
        monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
        monkeypatch.setattr(attention_module, "product", multiply)

    return install


def small(family: str, precision: str) -> Model:
    """Two layers are enough for a bit to spread."""
    return random_model(7, family, DTYPES[precision], num_hidden_layers=2)[0]


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        ("gemma", "float32"),
        ("gemma2", "float32"),
        pytest.param("gemma", "bfloat16", marks=full),
        pytest.param("gemma", "float16", marks=full),
        pytest.param("gemma2", "bfloat16", marks=full),
    ],
)
@pytest.mark.parametrize("multiply", [by_shape, by_place])
def test_it_is_so_whatever_products_do(
    family: str, precision: str, multiply: Product, hostile: Callable[[Model, Product], None]
) -> None:
    model, wanted = small(family, precision), load(family, 16, max_tokens=9)
    hostile(model, multiply)
    shapes = model.shapes
    assert shapes.tokens.apart == (multiply is by_place) and (multiply is by_shape or shapes.rows.sizes == (1,))
    answers = alone(model, wanted)
    for slots in (7, 40):
        assert not differing(together(model, wanted, slots, seed=slots), answers)
    assert not differing(together(model, wanted, 40), answers)
    model._shapes[torch.get_num_threads()] = MIXED  # sizes that this product tells apart
    assert differing(together(model, wanted, 40), alone(model, wanted)), "the test must be able to fail"


class Shaped(TorchDispatchMode):
    """Notes the shapes of every product."""

    PRODUCTS = ("linear", "mm", "addmm", "bmm", "baddbmm", "matmul", "scaled_dot_product", "_scaled_dot_product", "mkl")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, tuple[tuple[int, ...], ...]]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(name == product or name.startswith(f"{product}_") for product in self.PRODUCTS):
            self.seen.add((name, tuple(tuple(part.shape) for part in args if isinstance(part, Tensor))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "precision"),
    [("gemma", "float32"), ("gemma2", "float32"), pytest.param("gemma", "bfloat16", marks=full)],
)
def test_products_have_shapes_of_the_closed_set_or_of_a_request_alone(family: str, precision: str) -> None:
    model, wanted = small(family, precision), load(family, 24, max_tokens=8)
    by_itself, in_company = Shaped(), Shaped()
    model.shapes  # noqa: B018  # tried before
    with by_itself:
        alone(model, wanted)
    with in_company:
        for slots in (2, 7, 40):
            together(model, wanted, slots, seed=slots)
        together(model, wanted, 40)  # all at once: steps of more rows than the fewest
    shapes, shared = model.shapes, model.config.num_key_value_heads
    counts = {*shapes.tokens.sizes, *shapes.rows.sizes, *(n * model.image_tokens for n in shapes.images.sizes)}
    new = in_company.seen - by_itself.seen
    assert {name for name, _ in in_company.seen} == {name for name, _ in by_itself.seen}
    assert len(new) > 10, "company has shapes of its own"
    for name, (left, *rest) in new:
        if name.startswith(("_scaled_dot", "scaled_dot")):  # the encoder's
            assert left[0] in shapes.images.sizes, (name, left, rest)
        elif name == "bmm":  # a decode step's, a chunk at a time
            assert left[0] // shared in shapes.rows.sizes and left[0] % shared == 0, (name, left, rest)
            assert model.chunk in (left[2], rest[0][2]), (name, left, rest)
        else:
            left = rest[0] if name == "addmm" else left
            assert int(np.prod(left[:-1])) in counts, (name, left, rest)
    if min(shapes.rows.sizes) < len(wanted):  # else every step has the same rows here
        assert {name for name, _ in new} >= {"bmm"}


# What lies in the slots.


@pytest.mark.parametrize(("family", "precision"), apart(RANDOM, QUICK_RANDOM))
def test_what_slots_held_before_does_not_matter(family: str, precision: str) -> None:
    model, wanted = made(family, precision), load(family, 10, max_tokens=6)
    clean = engine(model, slots=5).run(wanted)
    for rubbish in (float("nan"), float("inf")):
        dirty = engine(model, slots=5)
        slots = dirty._decoder.slots
        slots._memory.fill_(rubbish)
        slots._valid = [0] * slots.count
        assert dirty.run(wanted) == clean


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_a_request_that_overflows_costs_nobody_else_anything(family: str) -> None:
    model, wanted = made(family, "float32"), load(family, 24, max_tokens=12)
    answers = alone(model, wanted)
    crowd = engine(model, slots=4)
    decoder = crowd._decoder
    futures = crowd.submit(wanted)
    struck: set[str] = set()
    step = 0
    while crowd.step():
        step += 1
        if step % 3 == 1 and len(struck) < 5 and decoder.live:
            victim = decoder.live[step % len(decoder.live)]
            decoder.slots._memory[:, :, victim.row, :, : victim.held] = float("nan")
            struck.add(victim.request.id)
    found = {future.result().id: future.result() for future in futures}
    assert len(struck) > 2 and any(np.isnan(found[name].logprobs).any() for name in struck), "the test must poison"
    assert set(differing(found, answers)) <= struck
    again = crowd.run(wanted)  # into slots that held no numbers
    assert {answer.id: answer for answer in again} == answers


# The same in the model's own parts.


def prefilled(model: Model, order: list[int], rows: list[int]) -> tuple[Tensor, Slots]:
    """Logits of eight requests, prefilled in this order into these slots."""
    prompts = [model.tokenize(request.prompt) for request in requests(8)]
    features = model.embed_images(torch.from_numpy(np.stack(images(8))))
    slots = Slots(model.config, 12, 250, model.chunk, dtype=model.dtype, device=model.device)
    return model.prefill(features[order], [prompts[number] for number in order], slots, rows), slots


@pytest.mark.parametrize(("family", "precision"), apart(RANDOM, QUICK_RANDOM))
def test_rows_that_change_places_change_nothing_else(family: str, precision: str) -> None:
    model = made(family, precision)
    pixels = torch.from_numpy(np.stack(images(8)))
    features = model.embed_images(pixels)
    for seed in range(4 if precision == "float32" else 2):
        first, kept = prefilled(model, list(range(8)), list(range(8)))
        order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(model.embed_images(pixels[order]), features[order])
        rows = torch.randperm(8, generator=torch.Generator().manual_seed(seed + 9)).tolist()
        logits, moved = prefilled(model, order.tolist(), rows)
        assert torch.equal(logits, first[order])
        place = torch.tensor(rows)[order.argsort()]  # the slot of each request
        assert torch.equal(moved._memory[:, :, place], kept._memory[:, :, :8])
        held = torch.tensor([model.image_tokens + len(model.tokenize(request.prompt)) for request in requests(8)])
        for slots, where in ((kept, torch.arange(8)), (moved, place)):
            slots.tokens[where] = first.argmax(-1)
            slots.zero_unwritten(8, slots.capacity)
        lengths = round_up(int(held.max()) + 1, model.chunk), kept.capacity
        steps = []
        for slots, where in ((kept, torch.arange(8)), (moved, place)):
            positions = torch.zeros(8, dtype=torch.int64).index_copy_(0, where, held)
            steps.append([model.decode_step(slots, positions, length)[where] for length in lengths])
        assert lengths[0] < lengths[1]
        assert torch.equal(steps[0][0], steps[1][0]) and torch.equal(steps[0][1], steps[1][1])
        if model.shapes.any_length:
            assert torch.equal(steps[0][0], steps[0][1]), "how far a step looks does not show"


@pytest.mark.parametrize("precision", DTYPES)
def test_the_number_of_rows_changes_nothing(precision: str) -> None:
    model = made("gemma", precision)
    logits, _ = prefilled(model, list(range(8)), list(range(8)))
    for count in (1, 2, 3, 5, 7):
        some, _ = prefilled(model, list(range(count)), list(range(count)))
        assert torch.equal(some, logits[:count])


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("threads", [5, pytest.param(7, marks=full)])
def test_rows_are_their_own_where_threads_share_them_unevenly(
    threads: int, precision: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A thread's part may end within a vector; an activation may round what is left over in another way."""
    model = made("gemma", precision)
    block, chance = model.network.model.language_model.layers[0], torch.Generator().manual_seed(0)
    few_sizes(monkeypatch, str(tmp_path))
    torch.set_num_threads(threads)
    try:
        found = model.shapes.tokens
        for size in () if found.apart else found.sizes:
            for _ in range(40):
                row = torch.randn(1, 128, generator=chance).to(model.dtype).expand(size, -1).contiguous()
                with torch.inference_mode():
                    fed = block.gate_up.gated(row, block.activation)
                assert torch.equal(fed, fed[:1].expand_as(fed)), (size, "equal rows, made unequal by their places")
    finally:
        torch.set_num_threads(1)
