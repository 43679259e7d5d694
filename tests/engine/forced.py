"""A process of its own: answers alone and in company under this environment's settings, in every precision.

Prints a line of JSON for each precision and number of threads.
"""

import json
import os

import torch
from models import engine, random_model, requests

from pipeline.model import DTYPES


def main() -> None:
    wanted = requests(16, max_tokens=5)
    for precision, dtype in DTYPES.items():
        model, _ = random_model(7, "gemma", dtype, num_hidden_layers=2)
        for threads in (1, 2) if os.environ.get("FULL") or precision == "float32" else (1,):
            torch.set_num_threads(threads)
            single, crowd = engine(model, slots=1), engine(model, slots=9)
            alone = [single.run([request])[0] for request in wanted]
            order = [number * 7 % len(wanted) for number in range(len(wanted))]
            shuffled = crowd.run([wanted[number] for number in order])
            pairs = [*zip(crowd.run(wanted), alone, strict=True)]
            pairs += [(answer, alone[number]) for answer, number in zip(shuffled, order, strict=True)]
            said = {
                "precision": precision,
                "threads": threads,
                "answers": len({answer.tokens for answer in alone}),
                "differing": sum(one != other for one, other in pairs),
                "shapes": model.shapes.words(),
            }
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
