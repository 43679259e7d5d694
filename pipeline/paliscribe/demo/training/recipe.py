"""The whole training recipe: tokenizer, pools, stages, export. Pools and stages with existing results are skipped."""

import json
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from paliscribe.demo.training.model import build_processor, save
from paliscribe.demo.training.packing import read_items
from paliscribe.demo.training.pools import load_or_render
from paliscribe.demo.training.stages import STAGES, Stage
from paliscribe.demo.training.tokenizer import build_tokenizer
from paliscribe.demo.training.trainer import Learner, Pools, load_state, run_stage

SCENES = 60_000
PAGES = 40_000


def train(work: Path, out: Path, only: str | None = None, steps_scale: float = 1.0) -> dict[str, float]:
    """Train in the folder `work` and export to `out` after the last stage; returns seconds by stage.

    `only`: run only this stage, from the saved states of the stages before it. `steps_scale` below 1 shortens every
    stage and pool, for tests. Raises ValueError for an unknown stage.
    """
    names = [stage.name for stage in STAGES]
    if only is not None and only not in names:
        raise ValueError(f"unknown stage {only!r}; available: {', '.join(names)}")
    last = names.index(only) if only else len(STAGES) - 1
    tokenizer = build_tokenizer()
    pools = _pools(work, tokenizer, steps_scale)
    learner = Learner.new(tokenizer)
    seconds: dict[str, float] = {}
    for stage in STAGES[: last + 1]:
        if only in (None, stage.name):
            seconds[stage.name] = run_stage(_scaled(stage, steps_scale), learner, pools, work)
        else:
            learner.load_state_dict(load_state(work / f"{stage.name}.pt")["learner"])
    save(learner.model, build_processor(tokenizer), out)
    (work / "seconds.json").write_text(json.dumps(seconds))
    return seconds


def _pools(work: Path, tokenizer: PreTrainedTokenizerFast, steps_scale: float) -> Pools:
    folder = work / "pools"
    scenes = load_or_render(folder / "scenes", "scenes", 0, max(64, int(SCENES * min(1.0, steps_scale))))
    pages = load_or_render(folder / "pages", "pages", 0, max(64, int(PAGES * min(1.0, steps_scale))))
    return Pools(scenes, pages, read_items(scenes.items, tokenizer))


def _scaled(stage: Stage, steps_scale: float) -> Stage:
    return replace(stage, steps=max(1, round(stage.steps * steps_scale)))
