"""The script that one would write instead: transformers, batches of 32, a task at a time, decoding in a thread.

    python -m bench.peer_script --manifest m.jsonl --output answers.jsonl --threads 2

Used by `bench.peers`. It has no retries, resumes nothing, and one bad image ends it.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers import BATCH, TASKS, checkpoint, inputs_of, peer_arguments


def main() -> None:
    """Answer every task for every row of a manifest."""
    arguments = peer_arguments(__doc__)

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(arguments.threads)
    path = checkpoint()
    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    rows = [json.loads(line) for line in arguments.manifest.read_text().splitlines()]
    with arguments.output.open("w") as file:
        for task, limit in TASKS.items():
            for batch, inputs in prepared(processor, rows, arguments.manifest.parent, task):
                with torch.inference_mode():
                    output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
                texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                for row, text in zip(batch, texts, strict=True):
                    file.write(json.dumps({"id": row["id"], "task": task, "text": text}) + "\n")
                file.flush()


def prepared(
    processor: Any, rows: list[dict[str, Any]], folder: Path, task: str
) -> Iterator[tuple[list[dict[str, Any]], Any]]:
    """Batches of rows with their inputs; a thread prepares the next one meanwhile."""
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with ThreadPoolExecutor(1) as thread:
        futures = [thread.submit(inputs_of, processor, batch, folder, task) for batch in batches[:2]]
        for number, batch in enumerate(batches):
            found = futures.pop(0).result()
            if number + 2 < len(batches):
                futures.append(thread.submit(inputs_of, processor, batches[number + 2], folder, task))
            yield batch, found


if __name__ == "__main__":
    main()
