import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paliscribe.demo import CHECKPOINT, MASK_DECODER
from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.demo.evaluation import Annotator
from paliscribe.demo.masks import prototypes
from paliscribe.demo.sampling import sample_page, sample_scene
from paliscribe.demo.training.mask_codes import load_or_train, name, reconstruction
from paliscribe.demo.training.optimizer import Muon
from paliscribe.demo.training.packing import Example, Rows, choose, coarse_bin, packed_rows, plain_rows, read_items
from paliscribe.demo.training.pools import CHARACTERS, load_or_render, patch_targets
from paliscribe.demo.training.recipe import train
from paliscribe.demo.training.stages import STAGES, Stage
from paliscribe.demo.training.trainer import Learner, Pools, load_state, run_stage
from paliscribe.grammar.masks import MaskDecoder

SEED = 11
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def examples(annotator: Annotator) -> list[Example]:
    items = [[(item.task, item.prompt, item.answer) for item in scene_items(sample_scene(SEED))]]
    return read_items(items, annotator.processor.tokenizer)[0]


def hidden(model: Any, features: torch.Tensor, rows: Rows) -> torch.Tensor:
    seen = model.model.multi_modal_projector(features)[rows.images]
    embedded = torch.cat([seen, model.get_input_embeddings()(rows.tokens)], 1)
    return model.model.language_model(
        inputs_embeds=embedded, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
    ).last_hidden_state


@torch.inference_mode()
def test_plain_rows_equal_the_models_forward_pass(annotator: Annotator, examples: list[Example]) -> None:
    """The last stage uses PaliGemma's own mask and positions."""
    model, processor = annotator.model, annotator.processor
    item = scene_items(sample_scene(SEED))[0]
    inputs = processor(images=draw(sample_scene(SEED)), text=f"<image>{item.prompt}", return_tensors="pt")
    answer = torch.tensor([examples[0].answer[:-1]])
    ours = hidden(model, model.model.vision_tower(inputs.pixel_values).last_hidden_state, plain_rows([examples[:2]]))
    tokens = torch.cat([inputs.input_ids, answer], 1)
    theirs = model.model(
        input_ids=tokens,
        pixel_values=inputs.pixel_values,
        attention_mask=torch.ones_like(tokens),
        token_type_ids=torch.cat([inputs.token_type_ids, torch.ones_like(answer)], 1),
    ).last_hidden_state
    torch.testing.assert_close(ours[:1, : theirs.shape[1]], theirs, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_packed_prompts_do_not_attend_to_each_other(annotator: Annotator, examples: list[Example]) -> None:
    features = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    alone = packed_rows([examples[1:2]])
    together = packed_rows([[examples[0], examples[1]]])
    place = 64 + len(examples[0].prefix) + len(examples[0].answer) - 1
    one, both = hidden(annotator.model, features, alone), hidden(annotator.model, features, together)
    torch.testing.assert_close(one[:, 64:], both[:, place : place + one.shape[1] - 64], rtol=1e-4, atol=1e-4)


def test_rows_have_every_token_of_every_answer_as_a_target(examples: list[Example]) -> None:
    rows = packed_rows([examples[:3], examples[3:5]])
    wanted = [token for example in examples[:5] for token in example.answer]
    assert rows.targets.tolist() == wanted and len(rows.answer_places) == len(rows.weights) == len(wanted)


def test_choose_favours_ocr(examples: list[Example]) -> None:
    rng = np.random.default_rng(0)
    assert all(len(choose(examples, 4, rng)) == 4 for _ in range(5))
    written = [example for example in examples if example.pick > 10]
    assert all(set(map(id, written)) <= set(map(id, choose(examples, 4, rng))) for _ in range(5))


def test_masks_are_answered_with_the_codes_of_their_prototypes(annotator: Annotator) -> None:
    items = [
        [("segment", "segment star", "<loc0003><loc0004><loc0500><loc1023><mask star -9> star"), ("ocr", "ocr", "")]
    ]
    tokenizer = annotator.processor.tokenizer
    (example,) = read_items(items, tokenizer, {"star -9": list(range(0, 128, 8))})[0]
    codes = "".join(f"<seg{code:03d}>" for code in range(0, 128, 8))
    assert tokenizer.decode(example.answer) == f"<loc0000><loc0008><loc0504><loc1023>{codes} star<eos>"
    assert tokenizer.decode(example.prefix) == "<bos>segment star\n"
    (other,) = read_items(items, tokenizer)[0]
    assert tokenizer.decode(other.prefix) == "<bos>ocr\n"


def test_coarse_bins() -> None:
    assert max(abs(coarse_bin(value) - value) for value in range(1024)) <= 4
    assert len({coarse_bin(value) for value in range(1024)}) == 129


def test_patch_targets_cover_every_shape_and_character() -> None:
    for seed in range(30):
        scene = sample_page(seed)
        labels, boxes = patch_targets(scene)
        shown = sorted(CHARACTERS[label - 1] for label in labels[:, 3:].ravel() if label)
        assert set(shown) <= set(scene.text.replace(" ", ""))
        assert labels[:, 2].sum() == len(scene.shapes)
        assert (boxes[labels[:, 0] > 0] >= 0).all()


def test_muon_steps_are_orthogonal() -> None:
    matrix = torch.zeros(16, 48, requires_grad=True)
    matrix.grad = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    Muon([([matrix], 1.0)]).step(rate=1.0)
    singular = torch.linalg.svdvals(matrix.detach()) / (0.2 * 48**0.5)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_learning_rates_warm_up_and_decay_to_their_floor() -> None:
    for stage in STAGES:
        rates = [stage.rate(step) for step in range(stage.steps)]
        assert rates[0] < max(rates) <= 1 and rates[-1] < stage.floor + 0.01


@pytest.fixture(scope="module")
def pools(annotator: Annotator, tmp_path_factory: pytest.TempPathFactory) -> Pools:
    folder = tmp_path_factory.mktemp("pools")
    scenes, pages = (load_or_render(folder / kind, kind, 0, 16) for kind in ("scenes", "pages"))
    tokenizer, codes = annotator.processor.tokenizer, dict.fromkeys(map(name, prototypes()), range(16))
    return Pools(scenes, pages, read_items(scenes.items, tokenizer), read_items(scenes.items, tokenizer, codes))


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    given = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(given)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, id=stage.name, marks=pytest.mark.full if stage is not STAGES[0] else pytest.mark.long)
        for stage in STAGES
    ],
)
def test_a_resumed_stage_is_bit_identical(
    stage: Stage,
    annotator: Annotator,
    pools: Pools,
    set_threads: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """For any number of threads of the caller. Shortening a stage does not change its first step."""
    stage = replace(stage, scenes=8, pages=min(8, stage.pages))
    ends = []
    for threads, stops in ((1, [2]), (3, [1, 2])):
        set_threads(threads)
        folder = tmp_path / str(threads)
        folder.mkdir()
        for steps in stops:
            learner = Learner.new(annotator.processor.tokenizer)
            run_stage(replace(stage, steps=steps), learner, pools, folder)
        assert torch.get_num_threads() == threads
        ends.append(load_state(folder / f"{stage.name}.pt")["learner"])
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert capsys.readouterr().out == ""


def test_resuming_from_other_hardware_prints_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"arithmetic": "an abacus"}, tmp_path / "tower.pt")
    load_state(tmp_path / "tower.pt")
    assert "tower.pt: saved with an abacus, not torch" in capsys.readouterr().out


@pytest.mark.long
def test_the_recipe_runs_and_resumes(tmp_path: Path) -> None:
    """The whole recipe in miniature, then its last stage again from the saved states."""
    folders = ["--work", str(tmp_path), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "jobs.train_demo", *folders, "--steps-scale", "0.0008"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    state = tmp_path / f"{STAGES[-1].name}.pt"
    trained = load_state(state)["learner"]
    state.unlink()
    assert list(train(tmp_path, tmp_path / "again", STAGES[-1].name, 0.0008)) == [STAGES[-1].name]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    torch.testing.assert_close(load_state(state)["learner"], trained, rtol=0, atol=0)  # float32, unlike the checkpoint
    for file in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        assert (tmp_path / "out" / file).read_text() == (CHECKPOINT / file).read_text(), file
    made, shipped = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", CHECKPOINT))
    assert made | {"transformers_version": None} == shipped | {"transformers_version": None}  # of the installed one
    with pytest.raises(ValueError, match="unknown stage 'first'"):
        train(tmp_path, tmp_path, "first")
    with pytest.raises(ValueError, match="unknown stage 'tower'; available: masks, settle"):
        train(tmp_path, tmp_path, "tower", start=CHECKPOINT)
    decoder = MaskDecoder.from_npz((tmp_path / "again" / MASK_DECODER.name).read_bytes())
    assert set(reconstruction(decoder, load_or_train(tmp_path / "masks"))) == set(map(name, prototypes()))


@pytest.mark.long
def test_masks_are_taught_to_a_given_checkpoint(tmp_path: Path) -> None:
    assert list(train(tmp_path, tmp_path / "out", steps_scale=0.0008, start=CHECKPOINT)) == ["masks", "settle"]
    before, after = (load_file(folder / "model.safetensors") for folder in (CHECKPOINT, tmp_path / "out"))
    changes = {key: (after[key].float() - before[key].float()).norm() / before[key].float().norm() for key in before}
    assert 0 < max(changes.values()) < 0.2
