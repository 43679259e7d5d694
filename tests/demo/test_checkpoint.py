import pytest
from transformers import PaliGemmaForConditionalGeneration

from paliscribe.demo import CHECKPOINT
from paliscribe.demo.drawing import draw
from paliscribe.demo.evaluation import Annotator, ask, questions
from paliscribe.demo.sampling import sample_scene
from paliscribe.demo.score import missed_floors, summarise

PROMPTS = ["caption en", "answer en how many circles are there?", "detect red circle ; blue square", "ocr"]
TEXTS = [
    *PROMPTS,
    "<loc0015><loc1023><loc0313><loc0457> blue triangle ; <loc0015><loc0058><loc0313><loc0457> red circle",
    "<seg000><seg127>",
    "OFX 0123",
    "Grüße, 日本 – ok",
]


def test_the_checkpoint_is_a_tiny_paligemma(annotator: Annotator) -> None:
    assert type(annotator.model) is PaliGemmaForConditionalGeneration
    assert 1e6 < sum(p.numel() for p in annotator.model.parameters()) < 3e6
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*")) < 8e6


def test_the_tokenizer_has_paligemmas_special_tokens(annotator: Annotator) -> None:
    tokenizer = annotator.processor.tokenizer
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    for first, last, count in (("<loc0000>", "<loc1023>", 1024), ("<seg000>", "<seg127>", 128)):
        ids = tokenizer.convert_tokens_to_ids([first, last])
        assert ids[1] - ids[0] == count - 1 and tokenizer.unk_token_id not in ids
    assert tokenizer.convert_tokens_to_ids("<image>") == annotator.model.config.image_token_id
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips_through_the_tokenizer(annotator: Annotator, text: str) -> None:
    ids = annotator.processor.tokenizer(text, add_special_tokens=False).input_ids
    assert annotator.processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_processor_builds_paligemmas_inputs(annotator: Annotator) -> None:
    image = draw(sample_scene(0)).convert("L")
    inputs = annotator.processor(images=image, text="<image>ocr", return_tensors="pt")
    tokens = annotator.processor.tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    assert tokens == ["<image>"] * 64 + ["<bos>", "ocr", "\n"]
    assert inputs.pixel_values.shape == (1, 3, 112, 112)
    assert inputs.pixel_values.min() >= -1 and inputs.pixel_values.max() <= 1


def test_held_out_figures_reach_their_floors(annotator: Annotator) -> None:
    figures = summarise(ask(annotator, list(questions(scenes=30, texts=60))))
    assert missed_floors(figures) == []
    assert figures["ocr_none_exact"] >= 0.9


def test_batched_answers_equal_single_ones(annotator: Annotator) -> None:
    chosen = list(questions(scenes=2, texts=2))
    assert ask(annotator, chosen, batch=64) == ask(annotator, chosen, batch=1)
