"""What a stage sends to the pool."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import manifest, results
from pipeline.config import FetchConfig
from pipeline.images import decode
from pipeline.records import Prediction, Request
from pipeline.results import ModelFacts
from pipeline.stage import Plan, Stage
from pipeline.storage import open_store
from pipeline.tasks import parse_tasks

SIZE = 28


class Pool:
    """Keeps the requests that it is sent, and answers none of them."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.call: Sequence[Request] = ()

    def send(self, requests: Sequence[Request]) -> "Pool":
        self.call = requests
        self.sent += requests
        return self

    def result(self) -> list[Prediction]:
        return [Prediction(request.id, "", (), (), None, "model", "not asked") for request in self.call]


def test_draft_reaches_the_decoder_and_the_key(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(grain).save(tmp_path / "one.jpg")
    (tmp_path / "images.txt").write_text("one.jpg\n")
    output = str(tmp_path / "output")
    columns = {"image_column": "image", "id_column": "id"}
    frozen = manifest.freeze(str(tmp_path / "images.txt"), open_store(output), shard_rows=8, **columns)
    pool, tasks = Pool(), tuple(parse_tasks(["caption en"]))
    schema, facts = results.schema(frozen.schema), ModelFacts("demo", "r1", "float32")
    data = (tmp_path / "one.jpg").read_bytes()
    for draft in (False, True):
        Stage(Plan(output, tasks, schema, facts, SIZE, 8, FetchConfig(draft=draft)), pool).annotate_shard(0)
        assert np.array_equal(pool.sent[-1].pixels, decode(data, SIZE, draft=draft).pixels)
    exact, reduced = pool.sent
    assert not np.array_equal(exact.pixels, reduced.pixels)
    assert exact.image_key != reduced.image_key  # else they would share a vision pass in a pool that serves both
