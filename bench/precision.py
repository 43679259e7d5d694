"""Effect of lower precision and quantization on the demo model's answers, scores and memory.

    python -m bench.precision [--scenes 500] [--texts 300] [--json]

Each variant answers the same held-out prompts as float32. Measured: the share of answers with equal tokens, by task;
the scores of the answers against the scenes' truth; and the size of the weights. float32 itself is compared with
`model.generate`, in static batches of 32. The results do not apply to Google's checkpoints.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench import baseline
from bench.machine import machine
from paliscribe.config import ModelSpec
from paliscribe.demo.evaluation import MAX_NEW_TOKENS, Question, questions
from paliscribe.demo.score import Result, read_boxes, summarise
from paliscribe.engine import Engine
from paliscribe.model import paligemma as model_module
from paliscribe.records import Prediction, Request

VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "int8": {"precision": "bfloat16", "quantization": "int8"},
    "nf4": {"precision": "bfloat16", "quantization": "nf4"},
    "nf4-double": {"precision": "bfloat16", "quantization": "nf4", "double_quantization": True},
}
TASKS = ("answer", "caption", "detect", "ocr")
SCORES = ("answer_exact", "caption_f1", "detect_f1", "ocr_exact")
BATCH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--texts", type=int, default=300, help="scenes with text to read, of all kinds")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    asked = [each for each in questions(options.scenes, options.texts) if each.item.task in TASKS]
    wanted = requests(asked)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    exact = Engine(model_module.load(ModelSpec(precision="float32"), device=device)).run(wanted)
    figures: dict[str, Any] = {"generate": generated(wanted, exact)}
    print(f"{len(wanted)} prompts; float32 as model.generate: {figures['generate']:.2%}")
    print(header())
    for name in options.variants:
        figures[name] = measure(VARIANTS[name], asked, wanted, exact, device)
        print(row(name, figures[name]), flush=True)
    if options.json:
        ratios = {f"{name}/agreement": figures[name]["agreement"]["all"] for name in options.variants}
        print(json.dumps({"machine": machine(), "figures": figures, "ratios": ratios}))


def requests(asked: Sequence[Question]) -> list[Request]:
    """One request per prompt; requests on the same scene share its image."""
    made = []
    for number, question in enumerate(asked):
        pixels = np.asarray(question.image.convert("RGB").resize((112, 112), 3))
        made.append(Request(f"{number}", question.item.prompt, pixels, str(id(question.image)), MAX_NEW_TOKENS))
    return made


def generated(wanted: Sequence[Request], exact: Sequence[Prediction]) -> float:
    """Share of the engine's answers in float32 that equal those of `generate`."""
    subject = baseline.demo()
    end = subject.model.tokenizer.eos_token_id
    order = sorted(range(len(wanted)), key=lambda i: len(exact[i].tokens))
    prepared = baseline.batches(subject, [wanted[i] for i in order], BATCH)
    theirs = [row.tolist() for output in baseline.generate(subject, prepared) for row in output]
    texts = [row[: row.index(end)] if end in row else row for row in theirs]
    return statistics.fmean(list(exact[i].tokens) == tokens for i, tokens in zip(order, texts, strict=True))


def measure(
    variant: dict[str, Any],
    asked: Sequence[Question],
    wanted: Sequence[Request],
    exact: Sequence[Prediction],
    device: str,
) -> dict[str, Any]:
    """Agreement with float32 by task, scores, weight bytes, and requests/s."""
    model = model_module.load(ModelSpec.model_validate(variant), device=device)
    weights = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in model.network.state_dict().values()}.values())
    engine = Engine(model)
    begun = time.perf_counter()
    answers = engine.run(wanted)
    seconds = time.perf_counter() - begun
    same: dict[str, list[bool]] = {task: [] for task in (*TASKS, "all")}
    results = []
    for question, answer, reference in zip(asked, answers, exact, strict=True):
        item = question.item
        for task in (item.task, "all"):
            same[task].append(answer.tokens == reference.tokens)
        boxes = read_boxes(answer.text, *question.image.size) if item.task == "detect" else []
        results.append(Result(item.task, item.kind, item.answer, answer.text, item.boxes, boxes))
    scores = summarise(results)
    return {
        "agreement": {task: statistics.fmean(found) for task, found in same.items()},
        "asked": {task: len(found) for task, found in same.items()},
        "scores": {name: scores[name] for name in SCORES},
        "weight_bytes": weights,
        "requests_per_second": len(wanted) / seconds,
    }


def header() -> str:
    """The header of the table."""
    return "| | same tokens | " + " | ".join([*TASKS, *SCORES, "weights, MiB"]) + " |"


def row(name: str, figures: dict[str, Any]) -> str:
    """A variant's row of the table."""
    agreement, scores = figures["agreement"], figures["scores"]
    cells = [f"{agreement['all']:.1%}", *(f"{agreement[task]:.1%}" for task in TASKS)]
    cells += [f"{scores[score]:.4f}" for score in SCORES]
    return f"| {name} | " + " | ".join([*cells, f"{figures['weight_bytes'] / 2**20:.2f}"]) + " |"


if __name__ == "__main__":
    main()
