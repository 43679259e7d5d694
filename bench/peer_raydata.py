"""Ray Data's pattern for batch inference: images are read by tasks, `generate` runs in an actor.

    python -m bench.peer_raydata --manifest m.jsonl --output answers --threads 1

Used by `bench.peers`.
"""

from pathlib import Path
from typing import Any

from bench.peers import BATCH, TASKS, checkpoint, inputs_of, peer_arguments


class Generate:
    """The model in an actor of Ray Data."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(threads)
        self.folder = folder
        self.processor = AutoProcessor.from_pretrained(checkpoint())
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint(), dtype=torch.float32).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the answers to a batch of rows, a column a task."""
        import torch

        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        for task, limit in TASKS.items():
            inputs = inputs_of(self.processor, rows, self.folder, task)
            with torch.inference_mode():
                output = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
            texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            batch[task] = texts
        return {name: values for name, values in batch.items() if name != "bytes"}


def main() -> None:
    """Answer every task for every row of a manifest."""
    arguments = peer_arguments(__doc__)

    import ray

    folder = arguments.manifest.parent

    def fetch(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"bytes": (folder / row["image"]).read_bytes()}

    ray.init("local", include_dashboard=False, logging_level="ERROR", _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    answers = (
        ray.data.read_json(str(arguments.manifest), lines=True)
        .repartition(target_num_rows_per_block=8 * BATCH)
        .map(fetch, num_cpus=0.25)
        .map_batches(
            Generate,
            batch_size=BATCH,
            compute=ray.data.ActorPoolStrategy(size=1),
            fn_constructor_args=(folder, arguments.threads),
            num_cpus=1,
        )
    )
    answers.write_parquet(str(arguments.output))


if __name__ == "__main__":
    main()
