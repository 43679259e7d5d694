"""The demo tokenizer: byte-pair encoding trained on the demo's prompts and answers, with PaliGemma's special tokens."""

import json
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from paliscribe.demo.answers import scene_items
from paliscribe.demo.sampling import sample_scene

CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as in the released checkpoints
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))
PRINTABLE = tuple(chr(code) for code in range(33, 127))
SPACE = "▁"


def build_tokenizer(scenes: int = 4000) -> PreTrainedTokenizerFast:
    """Train on prompts and answers of the first training scenes. Other text falls back to bytes."""
    learner = _splitting(BPE())
    trainer = BpeTrainer(vocab_size=400, initial_alphabet=[SPACE, *PRINTABLE], show_progress=False)
    learner.train_from_iterator(_corpus(scenes), trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = {piece: i for i, piece in enumerate([*CONTROL, *BYTES, *pieces])}
    merges = [(left, right) for left, right in learned["merges"]]
    tokenizer = _splitting(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    # Box and mask tokens are not special, so that decoding keeps them.
    plain = ("\n", *LOCATIONS, *SEGMENTS)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    tokenizer.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _splitting(model: BPE) -> Tokenizer:
    """A tokenizer whose pieces do not span words, with each digit and capital as a piece of its own."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Split(Regex("[0-9A-Z?,;]"), "isolated"),
        ]
    )
    return tokenizer


def _corpus(scenes: int) -> list[str]:
    texts = [
        text
        for seed in range(scenes)
        for item in scene_items(sample_scene(seed))
        if item.task != "segment"  # so that the vocabulary is that of the first checkpoint, which had no masks
        for text in (item.prompt, item.answer)
    ]
    return [re.sub(r"<loc\d{4}>", "", text) for text in texts]
