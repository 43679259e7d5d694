"""Measure a demo checkpoint on held-out scenes: `python -m jobs.evaluate_demo`.

Prints the figures beside the floors; exits 1 where a floor is missed.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from paliscribe.demo import CHECKPOINT
from paliscribe.demo.score import FLOORS, missed_floors, summarise


def main() -> int:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes asked for all but text")
    parser.add_argument("--texts", type=int, default=600, help="held-out texts, a third of each kind")
    parser.add_argument("--exact", action="store_true", help="ask one by one instead of in batches")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    from paliscribe.demo.evaluation import Annotator, ask, questions

    began = time.monotonic()
    asked = list(questions(options.scenes, options.texts))
    figures = summarise(ask(Annotator.load(options.model), asked, batch=1 if options.exact else 64))
    missed = missed_floors(figures)
    if options.json:
        print(json.dumps({"figures": figures, "floors": FLOORS, "missed": missed}))
    else:
        print(table(figures))
        print(f"{len(asked)} prompts in {time.monotonic() - began:.0f} s")
        print(f"below their floor: {', '.join(missed)}" if missed else "all floors hold")
    return 1 if missed else 0


def table(figures: Mapping[str, float]) -> str:
    """The figures as a Markdown table, one line a figure, with counts and floors."""
    lines = ["| figure | value | n | floor |", "|---|---|---|---|"]
    for name, value in figures.items():
        subject, _, figure = name.rpartition("_")
        if figure != "n":
            floor = f"{FLOORS[name]:.2f}" if name in FLOORS else ""
            lines.append(
                f"| {subject.replace('_', ' ')}: {figure} | {value:.4f} | {figures[subject + '_n']:.0f} | {floor} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
