"""The demo model before training: architecture, initial weights and processor, all in transformers' classes."""

import math
from pathlib import Path

import torch
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from paliscribe.demo.training.pools import PATCHES, SIDE

WIDTH = 128
LOCATION_BINS = 1024


def build_processor(tokenizer: PreTrainedTokenizerFast) -> PaliGemmaProcessor:
    """The processor: bicubic resize to 112x112, pixels scaled to -1..1, 64 image tokens before the prompt."""
    image_processor = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        resample=3,  # bicubic
        do_convert_rgb=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    image_processor.image_seq_length = PATCHES
    return PaliGemmaProcessor(image_processor, tokenizer)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> PaliGemmaForConditionalGeneration:
    """A PaliGemma of 1.7 million parameters with random weights in float32."""
    torch.manual_seed(seed)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=14,
            vision_use_head=False,
        ),
        text_config=GemmaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        hidden_size=WIDTH,
        vocab_size=len(tokenizer),
        projection_dim=WIDTH,
        image_token_id=image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = PaliGemmaForConditionalGeneration(config)
    first = tokenizer.convert_tokens_to_ids("<loc0000>")
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[first : first + LOCATION_BINS] = _smooth_rows(embedding.std().item())
    return model


def save(model: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, folder: Path) -> None:
    """Save the weights in bfloat16, with config, tokenizer and processor, for `from_pretrained`."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    copy = PaliGemmaForConditionalGeneration(model.config).to(torch.bfloat16)
    copy.load_state_dict(weights)
    copy.generation_config.max_new_tokens = 128
    copy.save_pretrained(folder)
    processor.save_pretrained(folder)


def _smooth_rows(scale: float) -> torch.Tensor:
    """Initial embeddings [1024, 128] of the box tokens: sinusoids, so that near positions have similar embeddings."""
    position = torch.arange(LOCATION_BINS)[:, None] / (LOCATION_BINS - 1)
    frequency = torch.logspace(0, math.log10(40), WIDTH // 2)[None]
    phase = torch.rand(1, WIDTH // 2) * 2 * math.pi
    angle = math.pi * frequency * position + phase
    waves = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
    return waves * scale * math.sqrt(2)
