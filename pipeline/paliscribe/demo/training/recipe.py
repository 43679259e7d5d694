"""The whole training recipe: mask codes, tokenizer, pools, stages, export. What has results already is skipped."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from paliscribe.demo import MASK_DECODER
from paliscribe.demo.training import mask_codes
from paliscribe.demo.training.model import build_processor, save
from paliscribe.demo.training.packing import read_items
from paliscribe.demo.training.pools import load_or_render
from paliscribe.demo.training.stages import STAGES, Stage
from paliscribe.demo.training.tokenizer import build_tokenizer
from paliscribe.demo.training.trainer import Learner, Pools, load_state, own_threads, run_stage

SCENES = 60_000
PAGES = 40_000


def train(
    work: Path, out: Path, only: str | None = None, steps_scale: float = 1.0, start: Path | None = None
) -> dict[str, float]:
    """Train in the folder `work` and export to `out` after the last stage; returns seconds by stage.

    `only`: run only this stage, from the saved states of the stages before it. `steps_scale` below 1 shortens every
    stage and pool, for tests. `start`: a checkpoint in place of the stages before those of masks. Raises ValueError
    for an unknown stage, and for `only` with a `start` that replaces it.
    """
    stages = [stage for stage in STAGES if stage.masks] if start else list(STAGES)
    names = [stage.name for stage in stages]
    if only is not None and only not in names:
        raise ValueError(f"unknown stage {only!r}; available: {', '.join(names)}")
    last = names.index(only) if only else len(stages) - 1
    with own_threads():
        codes = mask_codes.load_or_train(work / "masks", steps_scale)
    tokenizer = build_tokenizer()
    pools = _pools(work, tokenizer, codes, stages[: last + 1], steps_scale)
    learner = Learner.new(tokenizer)
    if start:
        learner.model.load_state_dict(AutoModelForImageTextToText.from_pretrained(start).float().state_dict())
    seconds: dict[str, float] = {}
    for stage in stages[: last + 1]:
        if only in (None, stage.name):
            seconds[stage.name] = run_stage(_scaled(stage, steps_scale), learner, pools, work)
        else:
            learner.load_state_dict(load_state(work / f"{stage.name}.pt")["learner"])
    save(learner.model, build_processor(tokenizer), out)
    shutil.copyfile(work / "masks" / mask_codes.DECODER, out / MASK_DECODER.name)
    (work / "seconds.json").write_text(json.dumps(seconds))
    return seconds


def _pools(
    work: Path,
    tokenizer: PreTrainedTokenizerFast,
    codes: dict[str, list[int]],
    stages: Sequence[Stage],
    steps_scale: float,
) -> Pools:
    """The pools; that of pages only if one of the stages needs it."""
    folder = work / "pools"
    scenes = load_or_render(folder / "scenes", "scenes", 0, max(64, int(SCENES * min(1.0, steps_scale))))
    pages = None
    if any(stage.pages for stage in stages):
        pages = load_or_render(folder / "pages", "pages", 0, max(64, int(PAGES * min(1.0, steps_scale))))
    items = scenes.items
    return Pools(scenes, pages, read_items(items, tokenizer), read_items(items, tokenizer, codes))


def _scaled(stage: Stage, steps_scale: float) -> Stage:
    return replace(stage, steps=max(1, round(stage.steps * steps_scale)))
